"""A user's own files of numbers or text, read by rows."""
