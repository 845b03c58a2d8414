"""Data sets that are downloaded once and checked by their digest."""
