"""Streams: chunks of long sequences in order, one stream a batch row."""
