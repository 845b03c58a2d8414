"""The program that tests/experiments/test_resume.py starts: runs of experiments.train that are killed again and again.

    python -m tests.support.kill_runs FOLDER

One process imports everything and starts no device; each run is a fork of it, so that a restart costs no import.
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
from tbptt.checkpoints import finished
from tests.support.damage import cut, flip

ROWS, KILLS, TERMS = 2000, 6, 1
FLAGS = (
    "--target 0 --horizon 2 --cell gru --hidden 3 --estimator randomized --k1 4 --k2 16 --lanes 4 --lr 0.01 "
    "--valid-every 497 --checkpoint-seconds 0.05 --epochs 50"
).split()
DAMAGES = {1: cut, 2: flip, 4: os.unlink}  # after which kill the largest file of the newest checkpoint is damaged, and how
EARLY = (3, 5)  # killed before they have begun to train: while they read, pass over what is damaged, restore or compile


OLD_THREADS: list = []


def start(folder: Path, *flags: str) -> int:
    """Starts a run in a fork; what it says goes to a file beside its folder."""
    child = os.fork()
    if child:
        return child
    with open(f"{folder}.log", "ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    status = 70
    # The threads that jax's compiler front end started when it was imported are not in this process: it gets new ones (and
    # the old ones are kept, for they would be waited for).
    OLD_THREADS.append(mlir.global_thread_pool)
    mlir.global_thread_pool = ir.ThreadPool()
    try:
        status = train.run(lambda **more: tyro.cli(train.Config, args=flags, **more))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def newest(folder: Path) -> int:
    """Returns the step of the newest checkpoint."""
    there = finished(folder / "checkpoints")
    return int(there[-1].name.removeprefix("step_")) if there else -1


def wait_for_progress(folder: Path, child: int, before: int) -> None:
    """Waits until the run has made a checkpoint of its own."""
    end = time.monotonic() + 120
    while newest(folder) <= before:
        if os.waitpid(child, os.WNOHANG)[0] or time.monotonic() > end:
            raise RuntimeError(Path(f"{folder}.log").read_text()[-3000:])
        time.sleep(0.002)


def stop_often(folder: Path, first: list[str], number: int, times: int, draw: random.Random, damages: dict) -> dict:
    """Starts a run, ends it by a signal at a random moment, and goes on with it, many times; returns what came of it."""
    statuses, damaged = [], {}
    for turn in range(times):
        before = newest(folder)
        child = start(folder, *(first if turn == 0 else ["--resume", str(folder)]))
        if damages and turn in EARLY:
            time.sleep(draw.uniform(0, 1.5))
        else:
            wait_for_progress(folder, child, before)
            time.sleep(draw.uniform(0, 0.15))  # saving takes as long: it is killed while saving, too
        os.kill(child, number)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if turn in damages:
            path = finished(folder / "checkpoints")[-1]
            file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
            damages[turn](file)
            damaged[path.name] = file.name
    return {"statuses": statuses, "damaged": damaged}


def end(folder: Path, *flags: str) -> None:
    """Runs to the end."""
    child = start(folder, *flags)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise RuntimeError(f"status {status}: {Path(f'{folder}.log').read_text()[-3000:]}")


def main(out: Path) -> None:
    """Makes three runs, one undisturbed, one killed, one asked to stop; and writes what happened."""
    warnings.filterwarnings("ignore", "os.fork")
    t = np.arange(ROWS)
    rng = np.random.default_rng(0)
    np.save(out / "data.npy", np.stack([np.sin(t / 5) + 0.1 * rng.normal(size=ROWS), rng.normal(size=ROWS)], axis=1))
    flags = ["--data", str(out / "data.npy"), *FLAGS]
    draw = random.Random(1)
    whole, killed, asked = out / "whole", out / "killed", out / "asked"
    end(whole, *flags, "--out", str(whole))
    kills = stop_often(killed, [*flags, "--out", str(killed)], signal.SIGKILL, KILLS, draw, DAMAGES)
    end(killed, "--resume", str(killed))
    terms = stop_often(asked, [*flags, "--out", str(asked)], signal.SIGTERM, TERMS, draw, {})
    interrupts = stop_often(asked, ["--resume", str(asked)], signal.SIGINT, 1, draw, {})
    end(asked, "--resume", str(asked))
    (out / "found.json").write_text(json.dumps({"killed": kills, "asked": terms, "interrupted": interrupts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
