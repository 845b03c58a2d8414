"""Data sets that are downloaded once and verified by their digest."""
