"""Benchmarks of speed, memory and precision: one file per question, one clock for all."""
