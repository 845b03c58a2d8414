"""One run of several processes: who writes, and how all agree on when to save and when to stop."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

import tbptt
from experiments.support.common.console import console

EVERY = 20  # updates between two questions to all: each costs a message


def join(config: Any) -> None:
    """Makes this process one of several, if the flags say so; before anything else of jax.

    Raises:
        ValueError: flags that do not go together.
    """
    together = (config.coordinator, config.processes, config.process)
    if not config.cluster and together == (None, None, None):
        return
    if config.resume is None and config.out is None:
        raise ValueError("several processes must share one folder: give --out (on a disk that all of them see)")
    tbptt.distributed.start_processes(*together)


def is_first() -> bool:
    """Tells whether this process writes what is written once; of a single one it is true."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def log_place(folder: Path) -> tuple[Path, Console]:
    """Returns where this process logs: the first in the run's folder and to people, another one in a folder of its own."""
    if is_first():
        return folder, console
    own = folder / f"process_{jax.process_index()}"
    own.mkdir(parents=True, exist_ok=True)
    return own, Console(file=open(os.devnull, "w"))  # noqa: SIM115


def agree(position: int, asked: bool, due: bool, over: bool) -> tuple[bool, bool, bool]:
    """Returns what all processes do after update `position`: stop, save, end.

    asked = any process was asked to stop;  due, over = what the first one's clock says        every 20 updates
    """
    if jax.process_count() == 1:
        return asked, due, over
    if position % EVERY:
        return False, False, False
    flags = np.asarray(multihost_utils.process_allgather(np.array([asked, due, over])))
    return bool(flags[:, 0].any()), bool(flags[0, 1]), bool(flags[0, 2])
