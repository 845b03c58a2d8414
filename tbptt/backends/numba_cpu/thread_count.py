"""The choice of matrix product and of the number of threads of an operation.

`python -m benchmarks.peers` measures the effect of the constants.
"""

import os

import jax

# Batch rows from which weights are packed for `gemm`; for one row packing costs more than it saves.
PACKED_ROWS = 2
# Each thread reads all weights and takes about 0.02 ms to start, so it needs enough batch rows and
# enough multiplications.
ROWS_PER_THREAD, PRODUCTS_PER_THREAD = 4, 8_000_000


def thread_count(rows: int, products: int) -> int:
    """Return the threads of an operation, from its batch rows and the multiplications per row."""
    return max(
        1, min(cores_per_device(), rows // ROWS_PER_THREAD, rows * products // PRODUCTS_PER_THREAD)
    )


def cores_per_device() -> int:
    """Return the CPU cores per device of this process.

    It is 1 after `tbptt.distributed.split_cpu()`.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux; containers may restrict it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // jax.local_device_count())
