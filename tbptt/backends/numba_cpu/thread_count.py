"""Which product a compiled loop uses, and on how many threads it runs. Measured by `python -m benchmarks.peers`."""

import os

import jax

# Batch rows from which on weights are packed for gemm; packing them for one row costs more than it saves.
PACKED_ROWS = 2
# A thread reads all weights and takes about 0.02 ms to start, so it needs enough rows, and enough products of two numbers.
ROWS_PER_THREAD, PRODUCTS_PER_THREAD = 4, 8_000_000


def thread_count(rows: int, products: int) -> int:
    """Return on how many threads an operation runs, given its batch rows and the products of two numbers of one row."""
    return max(1, min(cores_per_device(), rows // ROWS_PER_THREAD, rows * products // PRODUCTS_PER_THREAD))


def cores_per_device() -> int:
    """Return how many cores fall to each of this process's devices: 1 after `tbptt.distributed.split_cpu()`."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system; a container may grant fewer than there are
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // jax.local_device_count())
