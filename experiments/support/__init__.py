"""Modules that the programs in `experiments` share."""
