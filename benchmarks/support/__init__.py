"""What the benchmarks share: the frame of a program, workers in processes of their own, figures."""
