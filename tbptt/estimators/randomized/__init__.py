"""Truncation at random steps."""
