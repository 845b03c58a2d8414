"""Run independent jobs in parallel, one per device."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import jax

Result = TypeVar("Result")


def on_all_devices(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run every job on the next free device, and return the results in order.

        results = [job() for job in jobs]

    Call `tbptt.distributed.split_cpu()` before jax is initialised to make each core a device: the
    matrix products of a small recurrent step use only one core. Arrays that a job creates are on
    its device; arrays that it takes from outside must not be committed to another device.

    Raises:
      The error of the first job, in order, that fails, after all jobs have ended.
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
