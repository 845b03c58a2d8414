"""Coordinate a run of several processes: which one writes, and when all of them save and stop."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

import tbptt
from experiments.support.common.console import console

EVERY = 20  # updates between two rounds of messages


def join(config: Any) -> None:
    """Connect this process to the others if the flags name them; call it before jax is initialised.

    Raises:
        ValueError: the flags are incomplete or contradict each other.
    """
    together = (config.coordinator, config.processes, config.process)
    if not config.cluster and together == (None, None, None):
        return
    if config.resume is None and config.out is None:
        raise ValueError(
            "several processes must share one folder: give --out, on a disk that all of them can "
            "access"
        )
    tbptt.distributed.start_processes(*together)


def is_first() -> bool:
    """Return whether this is the first process, which writes the files of the run."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Wait until every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def log_place(folder: Path) -> tuple[Path, Console]:
    """Return the folder and the console of this process's log.

    The first process logs into the folder of the run and on stderr, any other one into a folder of
    its own.
    """
    if is_first():
        return folder, console
    own = folder / f"process_{jax.process_index()}"
    own.mkdir(parents=True, exist_ok=True)
    return own, Console(file=open(os.devnull, "w"))  # noqa: SIM115


def agree(position: int, stopped: bool, due: bool, over: bool) -> tuple[bool, bool, bool]:
    """Return whether all processes stop, save and end after update `position`.

    stopped = any process received a signal;  due, over = by the clock of the first process

    Only after every 20th update; else all three are False.
    """
    if jax.process_count() == 1:
        return stopped, due, over
    if position % EVERY:
        return False, False, False
    flags = np.asarray(multihost_utils.process_allgather(np.array([stopped, due, over])))
    return bool(flags[:, 0].any()), bool(flags[0, 1]), bool(flags[0, 2])
