"""Means and deviations of a source in one pass of small blocks, to float64's precision."""

from collections.abc import Sequence

import numpy as np

from tbptt.data.streams.forecast import Scaling
from tbptt.data.tables.bad_samples import good_rows
from tbptt.data.tables.sources import Source


def stream_scaling(source: Source, *, keep: Sequence[str] = (), block: int = 65536) -> Scaling:
    """Computes every column's mean and population standard deviation, never holding more than a block.

    Block by block, with n, m, s the rows, mean and sum of squared deviations so far, and n', m', s' those of the block:

        d = m' - m;   m += d n' / (n + n');   s += s' + d^2 n n' / (n + n');   n += n'

    so nothing large is ever subtracted from something large. Rows that a masked source takes out do not count.

    Args:
        source: the training part (`part`), so that nothing of the test leaks.
        keep: columns that are to stay as they are, mean 0 and scale 1: labels, times, flags.
        block: rows read at once.

    Returns:
        A `Scaling` of float64 `[C]`, for `standardised`.

    Raises:
        ValueError: a column is constant, `keep` names one that is not there, or no row counts.

    References:
        Chan, Golub, LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1979.
    """
    if missing := [name for name in keep if name not in source.names]:
        raise ValueError(f"keep must name columns of the source, {', '.join(source.names)}; got {missing[0]!r}")
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
        n, low, high = both, np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
    if n == 0:
        raise ValueError(f"none of the {total} rows counts: the masked source takes out all of them")
    kept = np.array([name in keep for name in source.names])
    # Rounding can give a constant column a tiny deviation: compare the extremes, which is exact.
    for column in np.flatnonzero((low == high) & ~kept):
        raise ValueError(
            f"column {source.names[column]!r} is constant ({low[column]:g}) over the training part, so it has no scale. "
            "Leave it out, or name it in `keep`"
        )
    return Scaling(np.where(kept, 0.0, m), np.where(kept, 1.0, np.sqrt(s / n)))
