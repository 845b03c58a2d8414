"""Run experiments.train in this process."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments import train

CELL = "mingru"
SMALL = [
    "--cell", CELL, "--hidden", 3, "--batch", 4, "--k1", 8, "--k2", 8,
    "--checkpoint-seconds", 1000, "--patience", 0,
]  # fmt: skip
WAVES = ["--data", "waves.npy", "--target", 0]


@contextlib.contextmanager
def float32_in(folder: Path, monkeypatch: Any) -> Iterator[None]:
    """Run programs in float32 and in a folder, without their reports, which have own tests."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TBPTT_DATA", str(folder / "cache"))
    monkeypatch.setattr(
        "experiments.support.train.finish.write_report", lambda folder: folder / "report.html"
    )
    jax.config.update("jax_enable_x64", False)  # in all threads, also those that read ahead
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", True)


def write_waves() -> None:
    """Write waves.npy and waves.csv, two columns of 800 rows."""
    t = np.arange(800)
    waves = np.stack([np.sin(t / 5), np.cos(t / 7)], axis=1)
    np.save("waves.npy", waves)
    np.savetxt("waves.csv", waves, delimiter=",", header="a,b", comments="")


def go(capsys: Any, *flags: object) -> tuple[int, str, str]:
    """Run the program; return its exit status, stdout and stderr."""
    words = [str(flag) for flag in flags]
    status = train.run(lambda **more: tyro.cli(train.Config, args=words, **more))
    return status, *capsys.readouterr()


def last(out: str) -> Any:
    """Return the summary, the last line of stdout."""
    return json.loads(out.splitlines()[-1])
