"""A source whose values are the numbers of its rows."""

import numpy as np

from tbptt.types import Batch


class Counting:
    """Recordings of two columns, the row number and its negative; `bad` rows hold NaN."""

    names = ("row", "minus")

    def __init__(self, lengths, bad=()):
        self.lengths, self.bad = tuple(lengths), tuple(bad)

    def read_unchecked(self, start, stop):
        assert 0 <= start < stop <= sum(self.lengths)
        rows = np.arange(start, stop, dtype=np.float64)
        rows = np.where(np.isin(rows, self.bad), np.nan, rows)
        return np.stack([rows, -rows], axis=1)

    read = read_unchecked

    def path_of(self, row):
        return f"row {row}"


def rows_only(source, span):
    values = source.read(span.start, span.stop)
    return Batch(values, values[:, 0].astype(np.int32))
