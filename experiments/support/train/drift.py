"""Warn of input columns whose values are constant or shifted in the held-out parts."""

import numpy as np

from experiments.support.train.data import RunData
from experiments.support.train.task import Characters
from tbptt.data import Source
from tbptt.data.tables.bad_samples import known_values

FAR = 5.0  # standard deviations of the training part
BLOCK = 65536  # rows read at once


def column_warnings(data: RunData) -> list[tuple[str, str]]:
    """Return (message, advice) for input columns with other values in a held-out part.

    These are columns that are constant in the validation or test part but not in training, or whose
    mean there differs from that of training by more than 5 of its standard deviations.
    """
    task, ends = data.task, data.ends
    if isinstance(task, Characters):
        return []
    found = {}
    for name, start, stop in (
        ("validation", ends.train, ends.valid),
        ("test", ends.valid, ends.test),
    ):
        low, high, mean = _ranges(data.source, start, stop)
        for column, center, scale in zip(task.columns, task.mean, task.scale, strict=True):
            i = data.source.names.index(column)
            if low[i] == high[i] and (low[i] != center or scale != 1.0):
                found.setdefault(
                    column, f"is constant ({low[i]:g}) in the {name} part, unlike in training"
                )
            elif abs(mean[i] - center) > FAR * scale:
                found.setdefault(
                    column,
                    f"has the mean {mean[i]:.4g} in the {name} part, but {center:.4g} with the "
                    f"standard deviation {scale:.4g} in training",
                )
    target = getattr(task, "target", "")
    return [
        (
            f"column {column} {what}",
            f"consider --without {column}" if column != target else "consider another split",
        )
        for column, what in found.items()
    ]


def _ranges(source: Source, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lowest value, the highest value and the mean of every column, where they count."""
    C = len(source.names)
    low, high, total, n = np.full(C, np.inf), np.full(C, -np.inf), np.zeros(C), np.zeros(C)
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        values, known = source.read(first, last).astype(np.float64), True
        if (found := known_values(source, first, last)) is not None:
            known = found
        low = np.minimum(low, values.min(axis=0, where=known, initial=np.inf))
        high = np.maximum(high, values.max(axis=0, where=known, initial=-np.inf))
        total += values.sum(axis=0, where=known)
        n += np.sum(np.broadcast_to(known, values.shape), axis=0)
    return low, high, np.where(n > 0, total / np.maximum(n, 1), np.nan)
