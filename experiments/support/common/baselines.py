"""Score forecasts without a network: persistence (the last value) and linear autoregression.

Both are scored on the same origins. An origin t is a test origin if t and its target t + horizon
both lie in the test part: test_start <= t and t + horizon < test_end. Samples before test_start may
be used as inputs.
"""

import numpy as np
from jaxtyping import Float, Float64

from experiments.support.common.ridge import NormalEquations

BLOCK = 4096  # origins per block; with order 256 a block has 8 MB


def persistence(
    values: Float[np.ndarray, "T C"], target: int, horizon: int, test_start: int, test_end: int
) -> float:
    """Return the mean squared error of the last value as a forecast: x[t + horizon] = x[t].

    Args:
        values: `[T, C]`.
        target: the column x.
        horizon: steps ahead, at least 1.
        test_start, test_end: the test part, steps test_start .. test_end - 1.

    Raises:
        ValueError: a range or an index does not fit the values.
    """
    _check(values, target, horizon, 1, None, test_start, test_end)
    x = values[:, target]
    return float(
        np.mean((x[test_start + horizon : test_end] - x[test_start : test_end - horizon]) ** 2)
    )


def ridge_ar(
    values: Float[np.ndarray, "T C"],
    target: int,
    order: int,
    horizon: int,
    train_end: int,
    test_start: int,
    test_end: int,
    ridge: float = 1e-6,
) -> float:
    """Return the mean squared error of a linear forecast from the last `order` samples of a column.

        prediction[t] = b + sum_j w[j] x[t - order + 1 + j]                   j = 0 .. order - 1
        w, b minimise  sum_t (x[t + horizon] - prediction[t])^2 + ridge * N * |w|^2    b is free

    over the N training origins, those whose samples and target all lie in steps 0 .. train_end - 1.

    Args:
        values: `[T, C]`, standardised, so that `ridge` has the same meaning for every column.
        target: the column x.
        order: number of input samples, including the one at the origin.
        horizon: steps ahead, at least 1.
        train_end: the training part, steps 0 .. train_end - 1.
        test_start, test_end: the test part, steps test_start .. test_end - 1.
        ridge: penalty per origin, at least 0; independent of the amount of data.

    Raises:
        ValueError: a range or an index does not fit the values, or ridge < 0.
    """
    _check(values, target, horizon, order, train_end, test_start, test_end)
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0; got {ridge}")
    x = np.asarray(values[:, target], np.float64)
    equations = NormalEquations(order + 1)
    first, last = order - 1, train_end - horizon
    for start in range(first, last, BLOCK):
        features, targets = _block(x, start, min(start + BLOCK, last), order, horizon)
        equations.add(features, targets)
    weights = equations.solve(ridge)

    squares, last = 0.0, test_end - horizon
    for start in range(test_start, last, BLOCK):
        features, targets = _block(x, start, min(start + BLOCK, last), order, horizon)
        squares += float(np.sum((targets - features @ weights) ** 2))
    return squares / (last - test_start)


def _block(
    x: Float64[np.ndarray, " T"], start: int, stop: int, order: int, horizon: int
) -> tuple[Float64[np.ndarray, "N F"], Float64[np.ndarray, " N"]]:
    """Return features (`order` samples and a 1) and targets of the origins start .. stop - 1."""
    past = np.lib.stride_tricks.sliding_window_view(x[start - order + 1 : stop], order)
    return np.column_stack([past, np.ones(len(past))]), x[start + horizon : stop + horizon]


def _check(
    values: np.ndarray,
    target: int,
    horizon: int,
    order: int,
    train_end: int | None,
    test_start: int,
    test_end: int,
) -> None:
    T, C = values.shape
    if not 0 <= target < C:
        raise ValueError(f"target must be a column of values, 0 .. {C - 1}; got {target}")
    if horizon < 1 or order < 1:
        raise ValueError(
            f"horizon and order must be at least 1 step; got horizon={horizon}, order={order}"
        )
    if not order - 1 <= test_start < test_end - horizon or test_end > T:
        raise ValueError(
            f"the test part must lie in the {T} steps of values, after the first order - 1, and be "
            f"longer than the "
            f"horizon; got test_start={test_start}, test_end={test_end}, order={order}, "
            f"horizon={horizon}"
        )
    if train_end is not None and not order + horizon <= train_end <= test_start:
        raise ValueError(
            f"the training part must have order + horizon steps and end before the test part "
            f"starts; got "
            f"train_end={train_end}, order={order}, horizon={horizon}, test_start={test_start}"
        )
