"""Read tables of numbers and texts from files, by rows."""
