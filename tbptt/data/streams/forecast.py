"""Make input-target pairs for forecasting, and standardise with the training part only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tbptt import windows


class Scaling(NamedTuple):
    """Mean and scale of `standardise`: scaled = (values - mean) / scale.

    Both are `[C]`, in the units of the values.
    """

    mean: Float[np.ndarray, " C"]
    scale: Float[np.ndarray, " C"]


def standardise(
    values: Float[np.ndarray, "T C"], train_end: int
) -> tuple[Float[np.ndarray, "T C"], Scaling]:
    """Scale every column to mean 0 and standard deviation 1 over values[:train_end].

        scaled = (values - mean) / scale

    mean and scale are the mean and the population standard deviation of values[:train_end]. The
    remaining steps use the same two numbers, so the test part does not leak into training.

    Args:
        values: `[T, C]`, finite.
        train_end: static, 1 .. T.

    Returns:
        (scaled, scaling), in the dtype of values.

    Raises:
        TypeError: train_end is not an int.
        ValueError: train_end is not in 1 .. T, a column is constant over the training part, or
            a value is not finite.
    """
    check_values("values", values)
    if windows.check_window("train_end", train_end) > len(values):
        raise ValueError(
            f"train_end must be at most T, the number of steps; got train_end={train_end}, "
            f"T={len(values)}"
        )
    train = values[:train_end]
    mean, scale = train.mean(axis=0), train.std(axis=0)
    # Rounding can give a constant column a tiny deviation; comparing the extremes is exact.
    for column in np.flatnonzero((train.min(axis=0) == train.max(axis=0)) | (scale == 0)):
        raise ValueError(
            f"column {column} of values is constant ({train[0, column]}) over the training part, "
            f"its first {train_end} steps, so its scale is 0. Remove the column, or use a larger "
            "train_end"
        )
    return (values - mean) / scale, Scaling(mean, scale)


def forecast_pairs(
    values: Float[np.ndarray, "T C"], target: int, horizons: Sequence[int]
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, "N K"]]:
    """Pair every step with future values of one column, at one or more horizons.

        for t in range(N):                                     N = T - max(horizons)
            inputs[t] = values[t]
            for i, horizon in enumerate(horizons):
                targets[t, i] = values[t + horizon, target]

    Args:
        values: `[T, C]`, finite.
        target: the column to forecast, 0 .. C - 1.
        horizons: numbers of steps ahead, each at least 1, in any order.

    Returns:
        inputs `[N, C]`, a view of values; targets `[N, len(horizons)]`, a copy. The last
        max(horizons) steps are not inputs, because their targets lie beyond the recording.

    Raises:
        TypeError: a horizon is not an int.
        ValueError: target or a horizon is out of range, horizons is empty, or a value is not
            finite.
    """
    check_values("values", values)
    T, C = values.shape
    if not isinstance(target, int) or not 0 <= target < C:
        raise ValueError(
            f"target must be a column index of values, 0 .. {C - 1}; got target={target!r}"
        )
    if not isinstance(horizons, Sequence) or len(horizons) == 0:
        raise ValueError(
            f"horizons must be a sequence of at least one horizon, in steps; got {horizons!r}"
        )
    ahead = [windows.check_window(f"horizons[{i}]", horizon) for i, horizon in enumerate(horizons)]
    N = T - max(ahead)
    if N < 1:
        raise ValueError(
            f"horizons must be shorter than the recording; got max(horizons)={max(ahead)}, "
            f"T={T} steps"
        )
    return values[:N], np.stack(
        [values[horizon : horizon + N, target] for horizon in ahead], axis=1
    )


def check_values(name: str, values: object) -> None:
    """Raise a ValueError unless `values` is a finite floating numpy array `[T, C]`."""
    if (
        not isinstance(values, np.ndarray)
        or values.ndim != 2
        or values.size == 0
        or values.dtype.kind != "f"
    ):
        shape = np.shape(values)  # pyright: ignore[reportArgumentType, reportCallIssue]
        dtype = getattr(values, "dtype", type(values).__name__)
        raise ValueError(
            f"{name} must be a non-empty numpy array [T, C] of floats; got shape {shape}, {dtype}. "
            f"Write a single column as {name}[:, None], and convert integers by "
            f"{name}.astype(float)"
        )
    bad = ~np.isfinite(values)
    if bad.any():
        step, column = map(int, np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be finite; step {step}, column {column} is {values[step, column]}, one "
            f"of {bad.sum()} non-finite values. Fill or remove them first"
        )
