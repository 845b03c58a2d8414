"""Independent jobs, one a device at a time: two runs on two cores take the time of one."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import jax

Result = TypeVar("Result")


def on_all_devices(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Runs every job on a device of its own, as soon as one is free, first jobs first; results in the order of the jobs.

        results = [job() for job in jobs]

    `tbptt.distributed.split_cpu()` first of all makes a device of every core: the products of a small recurrent step keep only one
    busy. Arrays that a job makes lie on its device; what it brings along must not be committed to another.

    Raises:
      whatever a job raises, the first one in order, once all others have ended.
    """
    free: SimpleQueue[Any] = SimpleQueue()
    devices = jax.local_devices()
    for device in devices:
        free.put(device)

    def run(job: Callable[[], Result]) -> Result:
        device = free.get()
        try:
            with jax.default_device(device):  # of this thread alone
                return job()
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(run, jobs))
