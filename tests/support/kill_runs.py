"""Runs of experiments.train that are killed repeatedly, for tests/experiments/test_resume.py.

    python -m tests.support.kill_runs FOLDER

One process imports everything and starts no device; each run is a fork of it, which avoids the
imports at a restart.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import tyro
from jax._src.interpreters import mlir
from jaxlib.mlir import ir

from experiments import train
from experiments.support.train import finish
from tbptt.checkpoints import finished
from tests.support.damage import cut, flip

ROWS, KILLS = 2000, 6
FLAGS = (
    "--target 0 --horizon 2 --no-linear --cell elman --hidden 3 --estimator randomized --k1 4 "
    "--k2 16 --batch 4 --lr 0.01 --valid-every 397 --epochs 40 --keep 5"
).split()  # 5 are kept, of which at most 3 are damaged: one is intact whenever a run is killed
OFTEN = ["--checkpoint-seconds", "0.05"]
# Kill number -> how the largest file of the newest checkpoint is damaged after it.
DAMAGES = {1: cut, 2: flip, 4: os.unlink}
# Kills before training has begun: while reading data, skipping damage, restoring or compiling.
EARLY = (3, 5)


OLD_THREADS: list = []


def start(folder: Path, *flags: str) -> int:
    """Start a run in a fork; its output goes to a file next to its folder."""
    child = os.fork()
    if child:
        return child
    with open(f"{folder}.log", "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 70
    # The threads of jax's compiler front end do not exist in a fork: it needs a new pool. The old
    # pool is kept alive, because its destructor would wait for the missing threads.
    OLD_THREADS.append(mlir.global_thread_pool)
    mlir.global_thread_pool = ir.ThreadPool()
    try:
        status = train.run(lambda **more: tyro.cli(train.Config, args=flags, **more))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint, or -1."""
    paths = finished(folder / "checkpoints")
    return int(paths[-1].name.removeprefix("step_")) if paths else -1


def wait_for_progress(folder: Path, child: int, before: int) -> None:
    """Wait until the run has saved a checkpoint of its own."""
    end = time.monotonic() + 120
    while newest(folder) <= before:
        if os.waitpid(child, os.WNOHANG)[0] or time.monotonic() > end:
            raise RuntimeError(Path(f"{folder}.log").read_text()[-3000:])
        time.sleep(0.002)


def stop_often(
    folder: Path, first: list[str], number: int, times: int, draw: random.Random, damages: dict
) -> dict:
    """Start a run, signal it at a random moment, and resume it, many times.

    Return the exit statuses and the damaged files.
    """
    statuses, damaged = [], {}
    for turn in range(times):
        before = newest(folder)
        child = start(folder, *(first if turn == 0 else ["--resume", str(folder), *OFTEN]))
        if damages and turn in EARLY:
            time.sleep(draw.uniform(0, 1.5))
        else:
            wait_for_progress(folder, child, before)
            time.sleep(draw.uniform(0, 0.15))  # as long as a save, so some kills interrupt a save
        os.kill(child, number)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if turn in damages:
            path = finished(folder / "checkpoints")[-1]
            file = max(
                (file for file in path.rglob("*") if file.is_file()),
                key=lambda file: file.stat().st_size,
            )
            damages[turn](file)
            damaged[path.name] = file.name
    return {"statuses": statuses, "damaged": damaged}


def end(folder: Path, *flags: str) -> None:
    """Run to the end."""
    child = start(folder, *flags)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise RuntimeError(f"status {status}: {Path(f'{folder}.log').read_text()[-3000:]}")


def main(out: Path) -> None:
    """Run one undisturbed training and one killed and stopped, and write the results."""
    warnings.filterwarnings("ignore", "os.fork")
    finish.write_report = lambda folder: folder / "report.html"  # it has own tests
    t = np.arange(ROWS)
    rng = np.random.default_rng(0)
    np.save(
        out / "data.npy",
        np.stack([np.sin(t / 5) + 0.1 * rng.normal(size=ROWS), rng.normal(size=ROWS)], axis=1),
    )
    flags = ["--data", str(out / "data.npy"), *FLAGS]
    draw = random.Random(1)
    whole, killed = out / "whole", out / "killed"
    end(whole, *flags, "--out", str(whole))
    first, again = [*flags, *OFTEN, "--out", str(killed)], ["--resume", str(killed), *OFTEN]
    found = {"killed": stop_often(killed, first, signal.SIGKILL, KILLS, draw, DAMAGES)}
    for name, number in (("stopped", signal.SIGTERM), ("interrupted", signal.SIGINT)):
        found[name] = stop_often(killed, again, number, 1, draw, {})
    end(killed, "--resume", str(killed), "--checkpoint-seconds", "60")
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
