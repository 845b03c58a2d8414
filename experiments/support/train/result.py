"""Score a run on its held-out parts, and compute the baselines and the summary."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import baselines
from experiments.support.train.data import RunData
from experiments.support.train.model import Model
from experiments.support.train.predicting import Score, predict_blocks
from experiments.support.train.prediction_file import PredictionFile
from experiments.support.train.prediction_steps import read_steps
from experiments.support.train.task import Characters, Classify, Forecast
from tbptt.data import part

METRICS = ("mse", "accuracy", "bits_per_character")
BLOCK = 1024  # steps per block of prediction
# Rows; the linear baseline, which holds a column in memory, is skipped for longer data.
AR_ROWS = 5_000_000
ORDERS = (16, 64, 256)


def warm_up(data: RunData, window: int, start: int) -> int:
    """Return the number of rows before `start` that warm up the carry: ten windows if available.

    0 for classes, and where a recording begins, which resets the carry.
    """
    begins = start in np.cumsum(data.source.lengths)
    return 0 if isinstance(data.task, Classify) or begins else min(start, 10 * window)


def score_rows(
    data: RunData,
    model: Model,
    params: Any,
    start: int,
    stop: int,
    window: int,
    path: Path | None = None,
) -> Any:
    """Score rows [start, stop) after a warm-up on earlier rows.

    With `path`, also write their predictions.
    """
    skip = warm_up(data, window, start)
    rows, score = part(data.source, start - skip, stop), Score(data.task)
    blocks = predict_blocks(data.task, model, params, rows, BLOCK, score=True, skip=skip)
    if path is None:
        for _, outputs, steps in blocks:
            score.add(outputs, steps)
        return score.result()
    path.unlink(missing_ok=True)  # of an earlier session of the same run
    with PredictionFile(path) as file:
        for columns, outputs, steps in blocks:
            file.write({**columns, "row": data.rows_of(columns["row"] + start - skip)})
            score.add(outputs, steps)
    return score.result()


def metric_name(data: RunData) -> str:
    """Return the name that `Score` gives the metric."""
    if isinstance(data.task, Forecast):
        return "mse"
    return "accuracy" if isinstance(data.task, Classify) else "bits_per_character"


def lower_is_better(numbers: Mapping[str, float]) -> float | None:
    """Return the metric that a checkpoint stores: the metric itself, or 1 - accuracy.

    None if there is none.
    """
    named = {name: value for name, value in numbers.items() if name in METRICS}
    return next(
        ((1 - value if name == "accuracy" else value) for name, value in named.items()), None
    )


def baseline_scores(data: RunData) -> dict[str, float]:
    """Score baselines without a network on the test part, by the metric of the task.

    Forecast: the mean of the training part, the last value, and linear autoregression fitted by
    ridge regression on the
    training part (for one recording of at most 5 million rows). Classes: the most frequent class of
    the training part.
    Characters: their frequencies in the training part.
    """
    if isinstance(data.task, Forecast):
        return _forecasts(data, data.task)
    outputs = data.task.outputs
    train = _counts(data, 0, data.parts.train, outputs)
    test = _counts(data, data.parts.valid, data.parts.test, outputs)
    if isinstance(data.task, Classify):
        return {"most frequent class": float(test[np.argmax(train)] / max(test.sum(), 1))}
    chances = (train + 1) / (train + 1).sum()
    return {"character frequencies": float(-(test * np.log2(chances)).sum() / max(test.sum(), 1))}


def _counts(data: RunData, start: int, stop: int, outputs: int) -> np.ndarray:
    """Count the scored classes or symbols in rows [start, stop)."""
    rows, counts = part(data.source, start, stop), np.zeros(outputs)
    for at in range(0, stop - start, 1 << 16):
        steps = read_steps(data.task, rows, at, min(at + (1 << 16), stop - start), True)
        counts += np.bincount(steps.truth[steps.counts].astype(np.int64), minlength=outputs)
    return counts


def _forecasts(data: RunData, task: Forecast) -> dict[str, float]:
    start, stop = data.parts.valid, data.parts.test
    rows, place = part(data.source, start, stop), data.source.names.index(task.target)
    sums, n = np.zeros(2), 0
    for at in range(0, stop - start, 1 << 16):
        steps = read_steps(task, rows, at, min(at + (1 << 16), stop - start), True)
        now = rows.read(at, at + len(steps.truth))[:, place].astype(np.float64)
        errors = (
            np.stack([steps.truth - task.target_mean, steps.truth - now])[:, steps.counts]
            / task.target_scale
        )
        sums, n = sums + (errors**2).sum(axis=1), n + int(steps.counts.sum())
    found = {"mean of training": sums[0] / max(n, 1), "last value": sums[1] / max(n, 1)}
    if len(data.source.lengths) == 1 and stop <= AR_ROWS:
        x = data.source.read(0, stop)[:, place].astype(np.float64)
        x = ((x - task.target_mean) / task.target_scale)[:, None]
        for order in ORDERS:
            if 10 * order + task.horizon <= data.parts.train and start >= order:
                found[f"ridge AR({order})"] = baselines.ridge_ar(
                    x, 0, order, task.horizon, data.parts.train, start, stop
                )
    return {name: float(value) for name, value in found.items()}


def summary_of(
    data: RunData, model: Model, params: Any, window: int, folder: Path, more: dict[str, Any]
) -> dict[str, Any]:
    """Score the test part, write predictions.csv, and return the content of summary.json."""
    begin = time.perf_counter()
    tested = score_rows(
        data, model, params, data.parts.valid, data.parts.test, window, folder / "predictions.csv"
    )
    name, base = metric_name(data), baseline_scores(data)
    best = (max if name == "accuracy" else min)(base, key=lambda key: base[key])
    extra = {f"test_{key}": value for key, value in tested.items() if key != name}
    return {
        "metric": name,
        "test_metric": number(tested.get(name)),
        "baseline": number(base[best]),
        "baseline_name": best,
        "baselines": {key: number(value) for key, value in base.items()},
        **extra,
        "rows": {"train": data.parts.train, "valid": data.parts.valid, "all": data.parts.test},
        "parts": data.about,
        "symbols": len(data.task.vocabulary) if isinstance(data.task, Characters) else None,
        "test_seconds": round(time.perf_counter() - begin, 2),
        **more,
    }


def number(value: float | None) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return float(value) if value is not None and math.isfinite(value) else None
