"""Make input-target pairs for forecasting, and standardise with the training part only."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tbptt import windows
from tbptt.data.tables.bad_samples import count_bad, known_values
from tbptt.data.tables.sources import Source
from tbptt.data.tables.table import TableWarning


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
    if windows.check_positive_int("train_end", train_end) > len(values):
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


def stream_scaling(
    source: Source, *, keep: Sequence[str] = (), constant: Sequence[str] = (), block: int = 65536
) -> Scaling:
    """Compute every column's mean and population standard deviation, one block at a time.

    With n, m, s the rows, mean and sum of squared deviations so far, and n', m', s' those of
    the next block:

        d = m' - m;   m += d n' / (n + n');   s += s' + d^2 n n' / (n + n');   n += n'

    which avoids the cancellation of sums of squares; n is one number per column. Rows that a
    masked source excludes, and missing values of its target, do not count.

    Args:
        source: the training part (see `part`), so that the test part does not leak.
        keep: columns to leave unscaled, with mean 0 and scale 1: labels, times, flags.
        constant: columns that may be constant: their scale is then 1, with a `TableWarning`.
        block: rows read at once.

    Returns:
        A `Scaling` of float64 `[C]`, for `standardised`.

    Raises:
        ValueError: a column is constant and may not be, `keep` has an unknown column, or no row
            counts.

    References:
        Chan, Golub, LeVeque, *Updating formulae and a pairwise algorithm for computing sample
        variances*, 1979.
    """
    if missing := [name for name in keep if name not in source.names]:
        raise ValueError(
            f"keep must name columns of the source, {', '.join(source.names)}; got {missing[0]!r}"
        )
    C, total = len(source.names), sum(source.lengths)
    n, m, s = np.zeros(C), np.zeros(C), np.zeros(C)
    low, high = np.full(C, np.inf), np.full(C, -np.inf)
    for start in range(0, total, block):
        stop = min(start + block, total)
        values, known = source.read(start, stop).astype(np.float64), True
        more = np.full(C, stop - start)
        if (found := known_values(source, start, stop)) is not None:
            known, more = found, found.sum(axis=0)
        mean = values.sum(axis=0, where=known) / np.maximum(more, 1)
        d, both = mean - m, np.maximum(n + more, 1)
        s += ((values - mean) ** 2).sum(axis=0, where=known) + d**2 * n * more / both
        m, n = m + d * more / both, n + more
        low = np.minimum(low, values.min(axis=0, where=known, initial=np.inf))
        high = np.maximum(high, values.max(axis=0, where=known, initial=-np.inf))
    if not n.any():
        lost = count_bad(source).columns
        most = max(lost, key=lambda name: lost[name])
        raise ValueError(
            f"all {total} rows of the source are masked, so there is nothing to scale with; "
            f"column {most!r} is missing in {lost[most]} of them. Exclude it (without, --without "
            f'{most}), or fill it in by missing="hold" (--missing hold)'
        )
    if not n.all():  # the target, which masks no row
        raise ValueError(
            f"column {source.names[int(n.argmin())]!r} has no value in the training part, so there "
            "is nothing to scale it with. Use a longer part, or predict another column (--target)"
        )
    kept = np.array([name in keep for name in source.names])
    # Rounding can give a constant column a tiny deviation; comparing the extremes is exact.
    flat = (low == high) & ~kept
    for name, value in zip(source.names, low, strict=True):
        if not flat[source.names.index(name)]:
            continue
        what = f"column {name!r} is constant ({value:g}) over the training part"
        if name not in constant:
            raise ValueError(
                f"{what}, so its scale is 0. Use a longer part, predict another column (--target), "
                "or name it in `constant` or `keep`"
            )
        warnings.warn(f"{what}: its scale is set to 1", TableWarning, stacklevel=2)
    mean, scale = np.where(flat, low, m), np.where(flat, 1.0, np.sqrt(s / n))
    return Scaling(np.where(kept, 0.0, mean), np.where(kept, 1.0, scale))


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
    ahead = [
        windows.check_positive_int(f"horizons[{i}]", horizon) for i, horizon in enumerate(horizons)
    ]
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
