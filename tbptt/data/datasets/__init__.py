"""Data sets by name: downloaded once and verified by their digest, or computed."""
