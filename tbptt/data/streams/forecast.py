"""Forecasting as input-target pairs, and the scaling that may look at the training part only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tbptt import windows


class Scaling(NamedTuple):
    """What `standardise` did: scaled = (values - mean) / scale. Both are `[C]`, in the units of the values."""

    mean: Float[np.ndarray, " C"]
    scale: Float[np.ndarray, " C"]


def standardise(values: Float[np.ndarray, "T C"], train_end: int) -> tuple[Float[np.ndarray, "T C"], Scaling]:
    """Scales every column to mean 0 and standard deviation 1 over the training part, values[:train_end].

        scaled = (values - mean) / scale,    mean, scale: of values[:train_end], population standard deviation

    The steps from train_end on are scaled with the same two numbers, so that nothing of the test part leaks.

    Args:
        values: `[T, C]`, finite.
        train_end: static, 1 .. T.

    Returns:
        (scaled, scaling), of the dtype of values.

    Raises:
        TypeError: train_end is not an int.
        ValueError: train_end is not in 1 .. T, a column is constant over the training part, or a value is not finite.
    """
    check_values("values", values)
    if windows.check_window("train_end", train_end) > len(values):
        raise ValueError(f"train_end must be at most T, the number of steps; got train_end={train_end}, T={len(values)}")
    train = values[:train_end]
    mean, scale = train.mean(axis=0), train.std(axis=0)
    # Rounding can give a constant column a tiny deviation: compare the extremes, which is exact.
    for column in np.flatnonzero((train.min(axis=0) == train.max(axis=0)) | (scale == 0)):
        raise ValueError(
            f"column {column} of values is constant ({train[0, column]}) over the training part, its first {train_end} "
            "steps, so it has no scale. Leave the column out, or train on more steps"
        )
    return (values - mean) / scale, Scaling(mean, scale)


def forecast_pairs(
    values: Float[np.ndarray, "T C"], target: int, horizons: Sequence[int]
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, "N K"]]:
    """Pairs every step with what one column will be, one or several horizons later.

        for t in range(N):                                     N = T - max(horizons)
            inputs[t] = values[t]
            for i, horizon in enumerate(horizons):
                targets[t, i] = values[t + horizon, target]

    Args:
        values: `[T, C]`, finite.
        target: the column to forecast, 0 .. C - 1.
        horizons: how many steps ahead, each at least 1; any order.

    Returns:
        inputs `[N, C]`, a view of values; targets `[N, len(horizons)]`, a copy. The last max(horizons) steps are in no
        input: their targets lie beyond the recording.

    Raises:
        TypeError: a horizon is not an int.
        ValueError: target or a horizon is out of range, horizons is empty, or a value is not finite.
    """
    check_values("values", values)
    T, C = values.shape
    if not isinstance(target, int) or not 0 <= target < C:
        raise ValueError(f"target must be a column of values, 0 .. {C - 1}; got target={target!r}")
    if not isinstance(horizons, Sequence) or len(horizons) == 0:
        raise ValueError(f"horizons must be a sequence of at least one horizon, in steps; got {horizons!r}")
    ahead = [windows.check_window(f"horizons[{i}]", horizon) for i, horizon in enumerate(horizons)]
    N = T - max(ahead)
    if N < 1:
        raise ValueError(f"horizons must be shorter than the recording; got max(horizons)={max(ahead)}, T={T} steps")
    return values[:N], np.stack([values[horizon : horizon + N, target] for horizon in ahead], axis=1)


def check_values(name: str, values: object) -> None:
    """Raises a ValueError that names what is wrong, unless `values` is a finite floating numpy array `[T, C]`."""
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.size == 0 or values.dtype.kind != "f":
        shape, dtype = np.shape(values), getattr(values, "dtype", type(values).__name__)  # pyright: ignore[reportArgumentType, reportCallIssue]
        raise ValueError(
            f"{name} must be a non-empty numpy array [T, C] of floats; got shape {shape}, {dtype}. One column alone is "
            f"{name}[:, None]; integers become floats by {name}.astype(float)"
        )
    bad = ~np.isfinite(values)
    if bad.any():
        step, column = map(int, np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be finite; step {step}, column {column} is {values[step, column]}, one of {bad.sum()} such "
            "values. Fill or cut them out first"
        )
