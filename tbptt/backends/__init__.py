"""Optional backends that run a cell through time: `numba_cpu` and `pallas_gpu`."""
