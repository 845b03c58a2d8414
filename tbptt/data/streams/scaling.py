"""Compute means and standard deviations of a source in one pass over small blocks."""

import warnings
from collections.abc import Sequence

import numpy as np

from tbptt.data.streams.forecast import Scaling
from tbptt.data.tables.bad_samples import good_rows
from tbptt.data.tables.sources import Source
from tbptt.data.tables.table import TableWarning


def stream_scaling(
    source: Source, *, keep: Sequence[str] = (), constant: Sequence[str] = (), block: int = 65536
) -> Scaling:
    """Compute every column's mean and population standard deviation, one block at a time.

    With n, m, s the rows, mean and sum of squared deviations so far, and n', m', s' those of
    the next block:

        d = m' - m;   m += d n' / (n + n');   s += s' + d^2 n n' / (n + n');   n += n'

    which avoids the cancellation of sums of squares. Rows that a masked source excludes do not
    count.

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
    n, m, s = 0, np.zeros(C), np.zeros(C)
    low, high = np.full(C, np.inf), np.full(C, -np.inf)
    for start in range(0, total, block):
        stop = min(start + block, total)
        values, good = source.read(start, stop).astype(np.float64), good_rows(source, start, stop)
        values = values if good is None else values[good]
        if len(values) == 0:
            continue
        mean = values.mean(axis=0)
        d, both = mean - m, n + len(values)
        s += ((values - mean) ** 2).sum(axis=0) + d**2 * n * len(values) / both
        m += d * len(values) / both
        n, low, high = (
            both,
            np.minimum(low, values.min(axis=0)),
            np.maximum(high, values.max(axis=0)),
        )
    if n == 0:
        raise ValueError(
            f"all {total} rows of the source are masked, so there is nothing to scale with. Check "
            "the source with count_bad"
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
                f"{what}, so its scale is 0. Use another column or a longer part, or name it in "
                "`constant` or `keep`"
            )
        warnings.warn(f"{what}: its scale is set to 1", TableWarning, stacklevel=2)
    mean, scale = np.where(flat, low, m), np.where(flat, 1.0, np.sqrt(s / n))
    return Scaling(np.where(kept, 0.0, mean), np.where(kept, 1.0, scale))
