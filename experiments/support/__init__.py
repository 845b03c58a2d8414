"""What several experiments share and the library does not need."""
