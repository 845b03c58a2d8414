"""Count the CPU cores that this process may use."""

import os


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    # Not available on every system; a container may grant fewer cores than the machine has.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
