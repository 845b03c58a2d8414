"""The same training work in every system: one file a system, all behind `work.Form`, each run in a process of its own."""
