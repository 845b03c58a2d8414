"""Truncated BPTT with a window that is chosen from an estimate of the bias."""
