"""Forecast all columns by ridge regression on past samples of all columns."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from experiments.support.common.ridge import NormalEquations

BLOCK = 4096  # origins per block; with 600 features a block has 20 MB


class Forecast(NamedTuple):
    """The forecast with the lowest validation error among all penalties.

    ridge: its penalty
    valid, test: its mean squared errors, `[horizons, C]`
    weights: w, with one row per lag and column in the order of the lags, and b; `[lags C + 1, K C]`
    """

    ridge: float
    valid: Float64[np.ndarray, "K C"]
    test: Float64[np.ndarray, "K C"]
    weights: Float64[np.ndarray, "F KC"]


def even_lags(order: int, most: int) -> list[int]:
    """Return at most `most` lags, evenly spaced over 0 .. order - 1 up to rounding."""
    if order < 1 or most < 1:
        raise ValueError(f"order and most must be at least 1 step; got order={order}, most={most}")
    return sorted({round(lag) for lag in np.linspace(0, order - 1, min(order, most))})


def ridge_forecast(
    values: Float[np.ndarray, "T C"],
    lags: Sequence[int],
    horizons: Sequence[int],
    ridges: Sequence[float],
    train_end: int,
    valid: tuple[int, int],
    test: tuple[int, int],
) -> Forecast:
    """Forecast every column at every horizon from all columns at every lag, by ridge regression.

        prediction[t, k, c] = b[k, c] + sum_{l in lags} sum_d w[l, d, k, c] values[t - l, d] w, b
        minimise  sum_t (values[t + horizons[k], c] - prediction[t, k, c])^2 + ridge * N * |w|^2

    over the N origins whose samples and targets all lie in 0 .. train_end - 1. Among `ridges`, the
    one with the lowest mean error on the validation part is used. An origin of a part (start, end)
    has start <= t and t + max(horizons) < end.

    Raises:
        ValueError: a part is shorter than the horizons, starts before max(lags), or overlaps the
          training part.
    """
    order, ahead = max(lags) + 1, max(horizons)
    for name, (start, end) in {
        "train": (order - 1, train_end),
        "valid": valid,
        "test": test,
    }.items():
        if not order - 1 <= start < end - ahead or end > len(values):
            raise ValueError(
                f"the {name} part must lie in the {len(values)} steps of values, after the first "
                f"{order - 1}, and be "
                f"longer than the horizon {ahead}; got {start} .. {end}"
            )
    if min(valid[0], test[0]) < train_end:
        raise ValueError(
            f"valid and test must begin after the training part's {train_end} steps; got {valid}, "
            f"{test}"
        )
    x, F = np.asarray(values, np.float64), len(lags) * values.shape[1] + 1
    equations = NormalEquations(F, len(horizons) * values.shape[1])
    for features, targets in _blocks(x, lags, horizons, order - 1, train_end):
        equations.add(features, targets)
    best: Forecast | None = None
    for ridge in ridges:
        weights = equations.solve(ridge)
        scores = [_score(x, lags, horizons, part, weights) for part in (valid, test)]
        if best is None or scores[0].mean() < best.valid.mean():
            best = Forecast(float(ridge), scores[0], scores[1], weights)
    if best is None:
        raise ValueError("ridges must contain at least one penalty; got none")
    return best


def predictions(values: np.ndarray, lags: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """Return the forecasts from every step, `[T, K C]`.

    The first max(lags), which lack past samples, are 0.
    """
    x, order = np.asarray(values, np.float64), max(lags) + 1
    found = np.zeros((len(x), weights.shape[1]))
    for first in range(order - 1, len(x), BLOCK):
        origins = np.arange(first, min(first + BLOCK, len(x)))
        found[origins] = _features(x, lags, origins) @ weights
    return found


def _score(
    x: np.ndarray,
    lags: Sequence[int],
    horizons: Sequence[int],
    part: tuple[int, int],
    weights: np.ndarray,
):
    squares, n = np.zeros(weights.shape[1]), 0
    for features, targets in _blocks(x, lags, horizons, *part):
        squares += np.sum((targets - features @ weights) ** 2, axis=0)
        n += len(targets)
    return (squares / n).reshape(len(horizons), -1)


def _blocks(x: np.ndarray, lags: Sequence[int], horizons: Sequence[int], start: int, end: int):
    """Yield features (past samples and a 1) and targets of a part, block by block."""
    last = end - max(horizons)
    for first in range(start, last, BLOCK):
        origins = np.arange(first, min(first + BLOCK, last))
        yield _features(x, lags, origins), np.hstack([x[origins + h] for h in horizons])


def _features(x: np.ndarray, lags: Sequence[int], origins: np.ndarray) -> np.ndarray:
    return np.hstack([*(x[origins - lag] for lag in lags), np.ones((len(origins), 1))])
