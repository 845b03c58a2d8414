"""One program for each claim."""
