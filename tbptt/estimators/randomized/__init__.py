"""Estimators that truncate at random steps."""
