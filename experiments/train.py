"""Train a recurrent network on your own data, by full or truncated BPTT or another estimator.

    python -m experiments.train --data my.csv --target price --horizon 10
    python -m experiments.train --data a.csv b.csv --task classify --target activity --group person
    python -m experiments.train --data book.txt --task characters --k1 100 --minutes 10
    python -m experiments.train --resume runs/train/2026-11-25_10-00-00

The rows of the data are steps of equal length in time. The end of the data is held out: the last
tenth is the test part, and the tenth before it is the validation part, which selects the best
checkpoint. `--hold-out person=9,10` tests on people, machines or other groups instead, and
`--test-data FILE` on separate files. The folder of the run contains config.json, metrics.jsonl
and checkpoints/, and at the end predictions.csv, summary.json and report.html. The last line of
stdout is the summary as JSON, unless stdout is a terminal. `python -m experiments.predict` predicts
with the result.

Ctrl-C and SIGTERM finish the current update, write a checkpoint, print the command that resumes the
run, and exit with status 130 and 143. If --epochs limits a run, a resumed one ends with the same
parameters, bit for bit, as an uninterrupted one.
"""

import contextlib
import dataclasses
import functools
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

import tbptt
from experiments.support.common.console import console
from experiments.support.common.platform import check_platform
from experiments.support.common.unroll_choice import UnrollName, choose_unroll, print_unroll
from experiments.support.train import choices, out_of_memory
from experiments.support.train import config as run_config
from experiments.support.train import result as run_result
from experiments.support.train import setup as run_setup
from experiments.support.train.advice import advice, few_update_warnings
from experiments.support.train.data import RunData, open_data
from experiments.support.train.drift import column_warnings
from experiments.support.train.finish import best_seed, finish
from experiments.support.train.init_from import with_params_of, with_scaling_of
from experiments.support.train.linear import LINEAR_FILE
from experiments.support.train.processes import is_first, join, log_place, print_line, wait_for_all
from tbptt.checkpoints import CheckpointMismatch, Checkpoints
from tbptt.data import DataUnavailable
from tbptt.distributed import split_cpu
from tbptt.fit.log import RunLog
from tbptt.fit.loop import Plan
from tbptt.fit.loop import run as run_loop
from tbptt.fit.stopping import Stop


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a recurrent network on your own data."""

    data: tuple[Path, ...] = ()
    """.csv, .parquet or .npy files, in order of time; each starts a new recording, an unbroken
    sequence of rows; text files for --task characters"""
    target: str | None = None
    """column to forecast, or column of the class; the columns of .npy files are 0, 1, ..."""
    horizon: int = 1
    """number of rows ahead to forecast; 0: estimate the target from the other columns of the same
    row and of earlier rows"""
    task: Literal["forecast", "classify", "characters"] = "forecast"
    """forecast a column, classify each recording, or predict the next character of a text (its
    bytes)"""
    answer: Literal["every", "last"] = "every"
    """classify: train at every row, and predict by the mean of the log-probabilities of the rows of
    a recording; or both at its last row alone, whose gradient does not reach most rows of a long
    recording (test accuracy on recordings of 600 rows: 0.60 with last, 0.97 with every). Choose
    last if only the end of a recording shows its class"""
    columns: tuple[str, ...] = ()
    """input columns; default all numeric columns except --group and the class. The target of a
    forecast is an input by default, or if it is named here"""
    without: tuple[str, ...] = ()
    """columns that are not inputs, for example one that is constant in the test part, or the
    target"""
    group: str | None = None
    """column that separates the recordings within a file: a new recording starts where its value
    changes"""
    time: str | None = None
    """column of times, which are dates or numbers; default the only column of dates"""
    missing: Literal["refuse", "mask", "hold", "interpolate"] = "refuse"
    """missing values: stop, exclude the row, repeat the last known value of the recording, or
    interpolate linearly (which uses later rows). mask: a missing target is not scored and excludes
    no row; as an input it is its last known value"""
    gaps: Literal["keep", "split"] = "keep"
    """split: start a new recording where the time step is more than 1.5 times the median step"""
    sort: bool = False
    """sort the rows of each file by group and time; needs memory for the whole file"""
    forecasts: int = 1
    """number of evenly spaced horizons to predict and to score, up to --horizon, which it must
    divide"""
    cell: Literal["lstm", "gru", "elman", "minlstm", "mingru"] = "lstm"
    """recurrent cell"""
    hidden: int = 64
    """units of each layer"""
    layers: int = 1
    """number of stacked layers"""
    estimator: Literal["full", "truncated", "adaptive", "randomized", "snap1", "rtrl", "uoro"] = (
        "truncated"
    )
    """gradient estimator; full: through each whole training sequence, with one update per pass"""
    k1: int | Literal["auto"] = "auto"
    """steps between updates; randomized: steps between possible truncation points; auto: for a
    forecast chosen from the data, else 50"""
    k2: int | None = None
    """steps through which the gradient is propagated; default 2 k1 (adaptive: at most 8 k1;
    randomized: blocks of 8 k1)"""
    linear: bool = True
    """add the network to a linear forecast by ridge regression on at most 256 past rows, and train
    it on the residual"""
    longest_lag: int | None = None
    """lstm and gru: initialise the gates for time scales of 1 to this number of steps (chrono
    initialisation); default short time scales"""
    delta: float = 0.1
    """adaptive: tolerated relative bias of the gradient"""
    unroll: UnrollName = "scan"
    """function that runs the cell through time; numba: compiled CPU loops; parallel: minlstm and
    mingru only"""
    batch: int | None = None
    """batch size: number of contiguous segments of the training data that form a batch; default
    32, or fewer for short data"""
    clip: float = 1.0
    """global norm at which gradients are clipped"""
    lr: float = 3e-3
    """initial learning rate of Adam; it falls to 1/100 of it along half a cosine over the run"""
    memory: int | None = None
    """memory budget of one gradient, in MiB; the backward pass recomputes what does not fit"""
    epochs: float | None = None
    """passes over the training data; default 10 if --minutes is not given"""
    minutes: float | None = None
    """training time without compilation; time before a --resume counts, too"""
    valid: float = 0.1
    """fraction of the data for validation, before the test part; with --hold-out, fraction of the
    other groups, of which the last ones are used"""
    test: float = 0.1
    """fraction of the data for the test, at the end"""
    hold_out: str | None = None
    """COLUMN=VALUE,VALUE: test on all rows with these values, for example person=9,10; validation
    is then on whole groups, too"""
    test_data: tuple[Path, ...] = ()
    """files to test on, with the same columns as --data; all of --data is then for training and
    validation"""
    patience: int | None = None
    """number of validations without improvement after which training ends early; 0: never; default
    half of the run"""
    valid_every: int | None = None
    """updates between validations; default one pass"""
    checkpoint_seconds: float = 60.0
    """seconds between checkpoints, in addition to one per validation"""
    keep: int = 3
    """number of newest checkpoints to keep, in addition to the best"""
    devices: int = 1
    """number of devices over which the batch is sharded; must divide --batch"""
    coordinator: str | None = None
    """for several processes: host:port of the first one; requires --processes, --process and a
    shared --out"""
    processes: int | None = None
    """number of processes"""
    process: int | None = None
    """index of this process, from 0"""
    cluster: bool = False
    """take coordinator, processes and process from Slurm or Open MPI"""
    seeds: int = 1
    """number of random seeds trained in one program; the best by validation is tested"""
    seed: int = 0
    """random seed of the parameters and of random estimators"""
    tensorboard: bool = False
    """also write TensorBoard event files (needs tensorboardX)"""
    resume: Path | None = None
    """folder of a run to resume with its own flags; only its length, the intervals of validation
    and checkpoints, paths, memory and devices may change"""
    init_from: Path | None = None
    """folder of an earlier run: start from its best parameters and its scaling, on new or longer
    data"""
    out: Path | None = None
    """folder of the run; default runs/train/TIMESTAMP"""


def main(config: Config, stop: Stop) -> dict[str, Any]:
    """Train and return the summary; if the run was stopped, return how to resume it."""
    choices.check_ranges(config)
    folder = run_config.folder_of(config)
    wait_for_all("the folder is free")  # no process may find files that another one wrote
    with console.status("reading the data") as status:  # on a terminal
        data = open_data(config)
        if config.init_from is not None:
            data = with_scaling_of(data, config)
        status.update("fitting a linear forecast")
        config, linear, reasons = choices.choose_k1_and_linear(config, data)
        config = choices.fill_defaults(config, data)
        status.update("building the model")
        setup = run_setup.build(config, data, choose_unroll(config.unroll), linear)
    must_match = run_config.fixed_settings(config, data)
    with Checkpoints(folder / "checkpoints", must_match, config.keep) as checkpoints:
        limit_change = run_config.changed_limit(config)  # before config.json is replaced
        if is_first():
            if linear is not None:
                linear.save(folder / LINEAR_FILE)
            metric = run_result.metric_name(data)
            run_config.write_config(folder, config, data, metric, reasons)
        state, position = resumed(checkpoints, setup.state)
        if config.init_from is not None and position == 0:
            state = with_params_of(state, config, setup.model)
        log, plan = make_log(config, setup, folder, position), make_plan(config, data, setup)
        try:
            with log:
                announce(config, data, setup, folder, reasons)
                if position:
                    where = f"after update {position}, {100 * (log.fraction or 0):.0f} % of the run"
                    print_line(f"resuming {where}{limit_change}")
                for message, remedy in warnings_before(setup, data, config):
                    log.warn("setting", message, remedy)
                ended = run_loop(
                    setup.step, state, setup.stream, plan, log,
                    position=position, checkpoints=checkpoints, stop=stop,
                )  # fmt: skip
        except jax.errors.JaxRuntimeError as error:
            raise out_of_memory.explained(error, config, setup) from error
        command, made = f"python -m experiments.train --resume {folder}", ended.position
        if ended.reason == "stopped":
            print_line(f"Stopped by {stop.name} after update {made}. To resume: {command}", True)
            return {"stopped": stop.name, "updates": made, "folder": str(folder), "resume": command}
        if ended.reason == "patience":
            wait = "half of the run" if config.patience is None else f"--patience {config.patience}"
            print_line(f"Ended early after update {made}: no better validation within {wait}")
            print_line(f"To train longer: {command} --patience 0", whole=True)
        return finish(config, data, setup, folder, checkpoints, ended.state)


def announce(
    config: Config,
    data: RunData,
    setup: run_setup.Setup,
    folder: Path,
    reasons: Sequence[str],
) -> None:
    """Print what is trained, on which parts of the data, and which settings were chosen and why."""
    print_line(
        f"{folder}: batch of {config.batch} sequences of {max(setup.stream.steps)} steps; "
        f"{len(setup.stream)} updates per pass"
    )
    for name, description in data.descriptions.items():
        print_line(f"{name}: {description}")
    for line in reasons:
        print_line(line)
    print_unroll(config.unroll)


def make_log(config: Config, setup: run_setup.Setup, folder: Path, position: int) -> RunLog:
    """Make the log, which shows the progress and writes metrics.jsonl."""
    log_folder, console = log_place(folder)
    return RunLog(
        log_folder,
        setup.updates,
        console=console,
        seconds=seconds_of(config),
        time_steps_per_update=setup.chunk * setup.stream.streams * config.seeds,
        advice=functools.partial(advice, settings=dataclasses.asdict(config)),
        start=position,
        tensorboard=config.tensorboard,
    )


def make_plan(config: Config, data: RunData, setup: run_setup.Setup) -> Plan:
    """Make the plan of the loop: limits, validation, early stopping and checkpoints."""
    return Plan(
        valid_every=config.valid_every or len(setup.stream),
        updates=setup.updates,
        seconds=seconds_of(config),
        patience=config.patience or None,
        patience_fraction=0.5 if config.patience is None else None,
        validate_first=setup.model.linear is not None,
        validate=lambda state: run_result.logged_errors(best_seed(config, data, setup, state)[0]),
        metric_of=run_result.checkpoint_metric,
        checkpoint_seconds=config.checkpoint_seconds,
        put=setup.put,
        reduce_metrics=setup.reduce_metrics,
    )


def seconds_of(config: Config) -> float | None:
    """Return --minutes in seconds; None without the flag."""
    return None if config.minutes is None else 60 * config.minutes


def resumed(checkpoints: Checkpoints, state: tbptt.TrainState) -> tuple[tbptt.TrainState, int]:
    """Return the newest valid state and its stream position, or `state` and 0."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = checkpoints.newest_good(state)
        except CheckpointMismatch as error:
            raise ValueError(f"{error}; to train on other data give --init-from FOLDER") from error
    for warning in caught:
        print_line(f"warning: {warning.message}")
    return (state, 0) if found is None else (found.state, int(found.position))


def warnings_before(setup: run_setup.Setup, data: RunData, config: Config) -> list[tuple[str, str]]:
    """Return (message, advice) for each setting or column that will probably prevent learning.

    A resumed run has warned before, so its list is empty.
    """
    if config.resume is not None:
        return []
    steps = max(setup.stream.steps)
    few = few_update_warnings(setup.chunk, setup.stream.streams, steps, setup.updates)
    return [*column_warnings(data), *([] if config.estimator == "full" else few)]


FAULTS = (
    DataUnavailable,
    FloatingPointError,
    ImportError,
    MemoryError,
    # A missing file, a folder in use, a checkpoint that cannot be written, a file that changed.
    OSError,
    ValueError,
)


def run(parse: Any) -> int:
    """Run the program and return its exit status."""
    with Stop() as stop:
        try:
            config = run_config.settings(parse, Config)
            if config.devices > 1:  # one device per core; no effect on other platforms
                with contextlib.suppress(RuntimeError):  # jax is initialised already
                    split_cpu(-(-config.devices // (config.processes or 1)))
            join(config)
            check_platform()
            summary = main(config, stop)
        except FAULTS as error:
            print(f"train: {error}", file=sys.stderr)
            return 1
    if is_first() and not sys.stdout.isatty():  # a person has read the lines on stderr
        print(json.dumps(summary), flush=True)
    return stop.status if "stopped" in summary else 0


if __name__ == "__main__":
    sys.exit(run(lambda **more: tyro.cli(Config, description=__doc__, **more)))
