"""Streams: chunks of long sequences in order, one stream per batch row."""
