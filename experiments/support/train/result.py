"""Score a run on its held-out parts, and compute the baselines and the summary."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common.json_file import finite_or_none
from experiments.support.train.data import RunData
from experiments.support.train.data_summary import about_data
from experiments.support.train.forecast_baselines import forecast_scores
from experiments.support.train.model import Model
from experiments.support.train.predicting import Score, predict_blocks
from experiments.support.train.prediction_file import PredictionFile
from experiments.support.train.prediction_steps import read_steps
from experiments.support.train.task import Characters, Classify, Forecast
from experiments.support.train.text_baselines import text_scores
from tbptt.data import part

METRICS = ("rmse", "accuracy", "bits_per_byte")
BLOCK = 1024  # steps per block of prediction


def warm_up(data: RunData, window: int, start: int, past: int = 0) -> int:
    """Return the number of rows before `start` that warm up the carry: ten windows if available.

    It is at least `past`, the rows of a linear forecast. It is 0 for classes, and if a recording
    begins at `start`, because the carry is reset there.
    """
    begins = start in np.cumsum(data.source.lengths)
    none = begins or isinstance(data.task, Classify)
    return 0 if none else min(start, max(10 * window, past))


def score_rows(
    data: RunData,
    model: Model,
    params: Any,
    start: int,
    stop: int,
    window: int,
    path: Path | None = None,
) -> Score:
    """Score rows [start, stop) after a warm-up on earlier rows.

    With `path`, also write their predictions.
    """
    skip = warm_up(data, window, start, 0 if model.linear is None else model.linear.order - 1)
    rows, score = part(data.source, start - skip, stop), Score(data.task)
    blocks = predict_blocks(data.task, model, params, rows, BLOCK, score=True, skip=skip)
    if path is None:
        for _, outputs, steps in blocks:
            score.add(outputs, steps)
        return score
    path.unlink(missing_ok=True)  # of an earlier session of the same run
    with PredictionFile(path, getattr(rows, "time_format", "")) as file:
        for columns, outputs, steps in blocks:
            file.write({**columns, "row": data.rows_of(columns["row"] + start - skip)})
            score.add(outputs, steps)
    return score


def metric_name(data: RunData) -> str:
    """Return the name that `Score` gives the metric."""
    if isinstance(data.task, Forecast):
        return "rmse"
    return "accuracy" if isinstance(data.task, Classify) else "bits_per_byte"


def checkpoint_metric(numbers: Mapping[str, float]) -> float | None:
    """Return the metric that a checkpoint stores: the metric itself, or 1 - accuracy.

    None if there is none.
    """
    named = {name: value for name, value in numbers.items() if name in METRICS}
    return next(
        ((1 - value if name == "accuracy" else value) for name, value in named.items()), None
    )


def logged_errors(errors: Mapping[str, float]) -> dict[str, float]:
    """Return the errors that a validation logs, all except the standardised ones."""
    return {name: value for name, value in errors.items() if "standardised" not in name}


def baseline_scores(data: RunData) -> dict[str, dict[str, float]]:
    """Score baselines without a network on the test part, by the errors of the task.

    Forecasts: see `forecast_baselines`. Classes: the most frequent class of the training part.
    Characters: n-grams, see `text_scores`, and the frequencies of bytes in the training part.
    """
    outputs = data.task.outputs
    train = _counts(data, 0, data.ends.train, outputs)
    test = _counts(data, data.ends.valid, data.ends.test, outputs)
    if isinstance(data.task, Classify):
        accuracy = float(test[np.argmax(train)] / max(test.sum(), 1))
        return {"most frequent class": {"accuracy": accuracy}}
    chances = (train + 1) / (train + 1).sum()
    bits = float(-(test * np.log2(chances)).sum() / max(test.sum(), 1))
    grams = text_scores(data, data.task) if isinstance(data.task, Characters) else {}
    return {"byte frequencies": {"bits_per_byte": bits}, **grams}


def _counts(data: RunData, start: int, stop: int, outputs: int) -> np.ndarray:
    """Count the scored classes or symbols in rows [start, stop)."""
    rows, counts = part(data.source, start, stop), np.zeros(outputs)
    for at in range(0, stop - start, 1 << 16):
        steps = read_steps(data.task, rows, at, min(at + (1 << 16), stop - start), True)
        counts += np.bincount(steps.truth[steps.scored].astype(np.int64), minlength=outputs)
    return counts


def summary_of(
    data: RunData, model: Model, params: Any, window: int, folder: Path, more: dict[str, Any]
) -> dict[str, Any]:
    """Score the test part, write predictions.csv, and return the content of summary.json.

    metric            the error that selects the checkpoint: rmse, accuracy or bits_per_byte
    test_*            errors of the model on the test part; rmse and mae in the units of the target
    baseline          the name of the baseline with the best metric on the test part
    baselines         the errors of every baseline on the test part
    parts, left_out, times, step, time_format    see `about_data`
    horizons          of a forecast, one entry per horizon: rmse and mae of the model, and the rmse
                      of the mean, of the last value and of the best linear baseline
    """
    begin = time.perf_counter()
    score = score_rows(
        data, model, params, data.ends.valid, data.ends.test, window, folder / "predictions.csv"
    )
    name, horizons = metric_name(data), None
    if isinstance(data.task, Forecast):
        others = forecast_scores(data, data.task)
        horizons = _by_horizon(score, others)
        base = {key: other.result() for key, other in others.items()}
    else:
        base = baseline_scores(data)
    known = {key: errors[name] for key, errors in base.items() if name in errors}
    best = (max if name == "accuracy" else min)(known, key=known.__getitem__, default=None)
    tested = {name: None, **score.result()}
    return {
        "metric": name,
        **{f"test_{key}": finite_or_none(value) for key, value in tested.items()},
        "baseline": best,
        "baselines": base,
        "horizons": horizons,
        "target": getattr(data.task, "target", None),
        **about_data(data),
        "rows": {"train": data.ends.train, "valid": data.ends.valid, "all": data.ends.test},
        "symbols": len(data.task.vocabulary) if isinstance(data.task, Characters) else None,
        "test_seconds": round(time.perf_counter() - begin, 2),
        **more,
    }


def _by_horizon(score: Score, others: Mapping[str, Score]) -> list[dict[str, float | int | None]]:
    """Return rmse and mae of the model by horizon, and the rmse of baselines by their names."""
    linear = {name: other for name, other in others.items() if name.startswith("ridge")}
    best = min(linear, key=lambda name: linear[name].result().get("rmse", np.inf), default=None)
    others = {name: other for name, other in others.items() if name not in linear or name == best}
    rows = []
    for i, own in enumerate(score.by_horizon()):
        names = ("horizon", "rmse", "mae", "scored")
        errors = {name: other.by_horizon()[i].get("rmse") for name, other in others.items()}
        found = {name: own.get(name) for name in names} | errors
        rows.append({key: finite_or_none(value) for key, value in found.items()})
    return rows
