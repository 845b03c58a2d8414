"""The same training work in every library: one file per system, all behind `work.Form`."""
