"""Train a recurrent network on data of your own, by full or truncated BPTT or what this library has besides.

    python -m experiments.train --data my.csv --target price --horizon 10
    python -m experiments.train --data walk.csv run.csv sit.csv --task classify --target activity --group person
    python -m experiments.train --data book.txt --task characters --k1 100 --minutes 10
    python -m experiments.train --resume runs/train/2026-11-25_10-00-00

The rows are steps of equal length in time. The end of the data is held out: the last tenth is looked at once, for the test,
the tenth before it chooses the best checkpoint. The run's folder holds config.json, metrics.jsonl, checkpoints/, and at the
end predictions.csv, summary.json and report.html; the last line of stdout is the summary. `python -m experiments.predict`
uses the result.

Ctrl-C and SIGTERM finish the update, write a checkpoint, say how to go on, and exit with 130 and 143. A run that goes on
ends with the same parameters, to the bit, as one that was never stopped, however it was stopped.
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from experiments.support.common.stopping import Stop
from experiments.support.train import config as run_config
from experiments.support.train import loop, out_of_memory
from experiments.support.train import result as run_result
from experiments.support.train import setup as run_setup
from experiments.support.train.choices import resolve
from experiments.support.train.data import open_data
from experiments.support.train.end import best_seed, finish, tell
from experiments.support.train.log import RunLog
from experiments.support.train.processes import is_first, join, log_place, wait_for_all
from tbptt.checkpoints import Checkpoints
from tbptt.data import DataUnavailable
from tbptt.distributed import split_cpu


@dataclasses.dataclass(frozen=True)
class Config:
    """Train on data of your own."""

    data: tuple[Path, ...] = ()
    """.csv, .parquet or .npy files, each a recording (several: one after another); for characters, text files"""
    target: str | None = None
    """the column to forecast, or that holds the class; of .npy files columns are 0, 1, ..."""
    horizon: int = 1
    """how many rows ahead to forecast"""
    task: Literal["forecast", "classify", "characters"] = "forecast"
    """forecast a column; tell the class of each recording at its end; or predict the next character of a text"""
    columns: tuple[str, ...] = ()
    """the columns that are inputs; default: all (but not --group, nor a class)"""
    group: str | None = None
    """the column that tells recordings apart within a file: a new one begins where it changes"""
    forecasts: int = 1
    """forecast so many evenly spaced horizons up to --horizon (must divide it); the last one counts, the others teach"""
    cell: Literal["lstm", "gru", "elman", "minlstm", "mingru"] = "lstm"
    hidden: int = 64
    """units of each layer"""
    layers: int = 1
    estimator: Literal["full", "truncated", "adaptive", "randomized", "snap1", "rtrl", "uoro"] = "truncated"
    """how gradients go through time; full: through a whole lane, one update a pass"""
    k1: int = 50
    """steps between updates (randomized: between places where the gradient may be cut)"""
    k2: int | None = None
    """steps that the gradient goes back; default 2 k1 (adaptive: up to 8 k1; randomized: 8 k1, cut at random)"""
    delta: float = 0.1
    """adaptive: relative bias of the gradient that is allowed"""
    lanes: int | None = None
    """parts of the training data that run side by side, the batch; default 32, fewer if the data are short"""
    clip: float = 1.0
    """global norm at which gradients are clipped"""
    lr: float = 3e-3
    """Adam's rate at the start; falls along half a cosine with --epochs, stays with --minutes"""
    memory: int | None = None
    """MiB for the intermediates of one gradient; part of the forward pass is then computed again as needed"""
    epochs: float | None = None
    """passes over the training data; default 10 if there is no --minutes"""
    minutes: float | None = None
    """training time, earlier sessions of the run included"""
    valid: float = 0.1
    """share of the data for validation, before the test part"""
    test: float = 0.1
    """share of the data for the test, the very end"""
    valid_every: int | None = None
    """updates between validations; default one pass"""
    checkpoint_seconds: float = 60.0
    """seconds between checkpoints, besides one at each validation"""
    keep: int = 3
    """how many of the newest checkpoints are kept, besides the best"""
    devices: int = 1
    """over which the lanes are dealt out"""
    coordinator: str | None = None
    """several processes: host:port of the first one, the same for all; with --processes, --process, and a shared --out"""
    processes: int | None = None
    """how many"""
    process: int | None = None
    """which one this is, from 0"""
    cluster: bool = False
    """several processes that Slurm or Open MPI has started: they tell coordinator, processes and process"""
    seeds: int = 1
    """runs side by side that differ in their seed alone; the best by validation is kept"""
    seed: int = 0
    tensorboard: bool = False
    """write event files too (extra: tensorboard)"""
    resume: Path | None = None
    """folder of a run to go on with, by its own flags; only how long, how often and on what devices may be changed"""
    out: Path | None = None
    """folder of the run; default runs/train/TIMESTAMP"""


def main(config: Config, stop: Stop) -> dict[str, Any]:
    """Trains, and returns the summary; of a run that was stopped, how to go on."""
    folder = run_config.folder_of(config)
    wait_for_all("the folder is free")
    data = open_data(config)
    config = resolve(config, data)
    with Checkpoints(folder / "checkpoints", run_config.must_agree(config, data), config.keep) as checkpoints:
        made = run_setup.build(config, data)
        if is_first():
            run_config.write_config(folder, config, data, run_result.metric_name(data))
        state, position = loop.resumed(checkpoints, made.state, tell)
        what = f"goes on after update {position}" if position else f"{config.lanes} lanes of {max(made.stream.steps)} steps"
        tell(f"{folder}: {what}; {len(made.stream)} updates a pass")
        total, seconds = made.updates, None if config.minutes is None else 60 * config.minutes
        place, people = log_place(folder)
        log = RunLog(
            place,
            total,
            console=people,
            seconds=seconds,
            steps_per_update=made.chunk * made.stream.lanes * config.seeds,
            settings=dataclasses.asdict(config),
            start=position,
            tensorboard=config.tensorboard,
        )
        plan = loop.Plan(
            stream=made.stream,
            put=made.put,
            step=made.step,
            one=made.one,
            score=lambda state: best_seed(config, data, made, state)[0],
            updates=total,
            seconds=seconds,
            valid_every=config.valid_every or len(made.stream),
            saved_every=config.checkpoint_seconds,
        )
        try:
            with log:
                ended = loop.run(plan, state, position, log, checkpoints, stop)
        except jax.errors.JaxRuntimeError as error:
            raise out_of_memory.explained(error, config, made) from error
        going_on = f"python -m experiments.train --resume {folder}"
        if not ended.done:
            tell(f"stopped by {stop.name} after update {ended.position}. To go on: {going_on}")
            return {"stopped": stop.name, "updates": ended.position, "folder": str(folder), "resume": going_on}
        return finish(config, data, made, folder, checkpoints, ended.state)


FAULTS = (
    DataUnavailable,
    FloatingPointError,
    ImportError,
    MemoryError,
    OSError,  # no such file, a folder in use, a checkpoint that cannot be written, a file that changed
    ValueError,
)


def run(parse: Any) -> int:
    """Runs the program; returns the exit status."""
    with Stop() as stop:
        try:
            config = run_config.settings(parse, Config)
            if config.devices > 1:  # of CPUs as many are made as are wanted; other devices are there or are not
                with contextlib.suppress(RuntimeError):  # too late: whoever runs this as a function has started jax
                    split_cpu(-(-config.devices // (config.processes or 1)))
            join(config)
            summary = main(config, stop)
        except FAULTS as error:
            print(f"train: {error}", file=sys.stderr)
            return 1
    if is_first():
        print(json.dumps(summary), flush=True)
    return stop.status if "stopped" in summary else 0


if __name__ == "__main__":
    sys.exit(run(lambda **more: tyro.cli(Config, description=__doc__, **more)))
