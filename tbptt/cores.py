"""How many cores a CPU device has to itself."""

import os

import jax


def usable_cores() -> int:
    """Counts the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system; a container may grant fewer than there are
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cores_of_a_device() -> int:
    """Counts the cores that fall to each of this process's devices: 1 after `tbptt.split_cpu()`."""
    return max(1, usable_cores() // jax.local_device_count())
