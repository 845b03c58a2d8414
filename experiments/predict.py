"""Predict with a model trained by experiments.train, one prediction per row of a file.

    python -m experiments.predict runs/train/2026-11-25_10-00-00 --data new.csv
    python -m experiments.predict RUN --data new.parquet --out forecast.parquet --block 1

The file is streamed in blocks, so its length is not limited by memory. Apart from rounding, the
predictions do not depend on the length of a block. Columns are found by name. A prediction uses its
row and earlier rows only. The columns of the output depend on the task of the run:

    forecast     row, prediction: the value of the target `horizon` rows after the row; for several
                 horizons prediction_1, prediction_2, ...
    classify     row, prediction, p_CLASS ...: the class of the recording, predicted after every row
    characters   row, prediction, p_prediction: the most likely next character (escaped unless
                 ASCII)

If the file has times, there are also the column time, and for a forecast target_time, which
continues with the median step beyond the last row. If it has groups, there is also the column
group.

`--carry-out day1.carry`, then `--carry-in day1.carry` with the next file, gives the same
predictions as one long file. With --score the file must contain the target. The true values are
then written beside the predictions, and the last line of stdout (JSON) contains the errors, for a
forecast rmse and mae in the units of the target, over all horizons and for each.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

import tbptt
from experiments.support.common.console import console
from experiments.support.common.json_file import read_config
from experiments.support.common.unroll_choice import choose_unroll, print_unroll
from experiments.support.train.mean_log_probabilities import initial_mean
from experiments.support.train.model import Model
from experiments.support.train.params import load_params, model_of
from experiments.support.train.predicting import Score, predict_blocks
from experiments.support.train.prediction_file import PredictionFile
from experiments.support.train.prediction_steps import open_for
from experiments.support.train.table_flags import TableFlags
from experiments.support.train.task import Classify, Forecast, Task, from_json
from tbptt.data import DataUnavailable, Source, SourceChanged
from tbptt.fit.progress import Pace, Status, make_view


@dataclasses.dataclass(frozen=True)
class Config:
    """Predict with the best checkpoint of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a run of experiments.train"""
    data: Path
    """.csv (also .csv.gz), .parquet or .npy file with the columns of the training data, in any
    order; for a run with --task characters, a text file"""
    out: Path | None = None
    """.csv or .parquet, or .npy for the predictions alone; default RUN/predictions-NAME.csv"""
    block: int = 1024
    """number of steps per block; 1 for one step at a time"""
    score: bool = False
    """compare with the true values, which the file must contain"""
    missing: Literal["refuse", "mask", "hold", "interpolate"] | None = None
    """missing values: stop, exclude the row (but not where only the target is missing), repeat the
    last known value, or interpolate linearly (which uses later rows); default that of the run"""
    sort: bool = False
    """sort the rows by group and time"""
    carry_in: Path | None = None
    """carry file of an earlier call, whose last recording the first row of --data continues"""
    carry_out: Path | None = None
    """write the carry after the last row, for --carry-in of the next call"""
    seed: int | None = None
    """for a run with several --seeds: index of the seed, from 0; default the best one of a
    run that has ended"""


def main(config: Config) -> dict[str, Any]:
    """Load the model, predict the file, and return a summary."""
    check_carry_files(config)
    settings = read_config(config.run)
    task = from_json(settings.get("task", {}), f"{config.run / 'config.json'}")
    unroll = settings.get("unroll", "scan")
    model = model_of(config.run, task, settings, choose_unroll(unroll))
    print_unroll(unroll)
    flags = TableFlags.of(settings)
    flags = flags._replace(missing=config.missing or flags.missing, sort=config.sort or flags.sort)
    source = open_for(task, [config.data], config.score, flags=flags)
    name = config.data.name.removesuffix(".gz").removesuffix(".zst")
    out = config.out or config.run / f"predictions-{Path(name).stem}.csv"
    carry_out = config.carry_out
    params, loaded = load_params(config.run, model, settings.get("seeds", 1), config.seed)
    with PredictionFile(out, getattr(source, "time_format", "")) as file:
        done = predict_file(
            task,
            model,
            params,
            source,
            file,
            config.block,
            config.score,
            _carry(config, model, task),
            None if carry_out is None else lambda carry: tbptt.save(carry, carry_out),
        )
    return {
        "run": str(config.run),
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        "data": str(config.data),
        "predictions": str(out),
        "block": config.block,
        **done,
    }


def check_carry_files(config: Config) -> None:
    """Raise a FileNotFoundError if a carry cannot be read or written."""
    if config.carry_in is not None and not config.carry_in.is_file():
        raise FileNotFoundError(
            f"--carry-in {config.carry_in} is no file; --carry-out writes it for the rows before"
        )
    if config.carry_out is not None and not config.carry_out.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"--carry-out {config.carry_out} is in a folder that does not exist; create it, "
            "or give another path"
        )


def _carry(config: Config, model: Model, task: Task) -> Any:
    """Return the carry of --carry-in; None without the flag."""
    if config.carry_in is None:
        return None
    like = model.cell.initial_carry((1,))
    if model.linear is not None and isinstance(task, Forecast):
        like = like, np.zeros((model.linear.order - 1, len(task.columns)), np.float32)
    if isinstance(task, Classify) and task.answer == "every":
        like = like, initial_mean(task.outputs)
    return tbptt.load(config.carry_in, like)


def predict_file(
    task: Task,
    model: Model,
    params: Any,
    source: Source,
    file: PredictionFile,
    block: int,
    score: bool,
    carry: Any = None,
    ended: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Write the predictions for a source into a file; carry and ended as for `predict_blocks`.

    Return rows, rows_per_second, and with `score` the errors, for a forecast also by horizon.
    """
    total, scored, begin = sum(source.lengths), Score(task), time.perf_counter()
    pace, view, rows = Pace(total, None), make_view(console, every=10.0), 0
    try:
        for columns, outputs, steps in predict_blocks(
            task, model, params, source, block, score=score, carry=carry, ended=ended
        ):
            file.write(columns)
            scored.add(outputs, steps)
            rows += len(outputs)
            if time.monotonic() - pace.newest() > 0.5:
                pace.mark(rows)
                view.show(_status(rows, total, pace))
    finally:
        pace.mark(rows)
        view.end(_status(rows, total, pace))
    seconds = time.perf_counter() - begin
    return {
        "rows": rows,
        "rows_per_second": round(rows / seconds, 1),
        **(scored.result() if score else {}),
        **({"horizons": scored.by_horizon()} if score and isinstance(task, Forecast) else {}),
    }


def _status(rows: int, total: int, pace: Pace) -> Status:
    return Status(
        rows,
        total,
        rows / total,
        rate=pace.rate(),
        unit="rows",
        left=pace.left(rows, 0.0),
        what="row",
    )


if __name__ == "__main__":
    try:
        result = main(tyro.cli(Config, description=__doc__))
    except (
        DataUnavailable,
        FileExistsError,
        FileNotFoundError,
        ImportError,
        IsADirectoryError,
        SourceChanged,
        ValueError,
    ) as error:
        sys.exit(f"predict: {error}")
    print(json.dumps(result), flush=True)
