"""Truncation whose window follows a measured bias (adaptive TBPTT)."""
