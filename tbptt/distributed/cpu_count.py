"""The number of CPU cores that this process may use."""

import os


def usable_cores() -> int:
    """Count the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system; a container may grant fewer than there are
    return len(affinity(0)) if affinity else os.cpu_count() or 1
