"""Coordinate the processes of a run, of which the first one writes its files."""

import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from rich.console import Console

import tbptt
from experiments.support.common.console import console, say


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


def print_line(text: str, whole: bool = False) -> None:
    """Print a line on stderr, in the first process only; `whole` if it has a command to copy."""
    if is_first():
        say(text, whole=whole)


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
