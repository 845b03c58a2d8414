"""Views of a source: a range of rows, some recordings, fewer columns, scaled values."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from tbptt.data.streams.forecast import Scaling
from tbptt.data.tables.bad_samples import about, known_values, may_mask, times_of
from tbptt.data.tables.sources import Source


class Part:
    """Rows [start, stop) of a source, as recordings of the given lengths.

    Made by `part`.
    """

    def __init__(self, source: Any, start: int, lengths: Sequence[int]):
        self.names, self.lengths = source.names, tuple(lengths)
        self._source, self._start, self._rows = source, start, sum(lengths)
        self.groups: tuple[str, ...] = ()
        self.time_format = getattr(source, "time_format", "")
        if may_mask(source):
            self.good = self._good
        if hasattr(source, "read_unchecked"):
            self.read_unchecked = self._read_unchecked

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Read rows, counted from the first row of the part."""
        return self._source.read(*self._place(start, stop))

    def times(self, start: int, stop: int) -> np.ndarray | None:
        """Return the times of rows; None without a time column."""
        return times_of(self._source, *self._place(start, stop))

    def known(self, start: int, stop: int) -> Bool[np.ndarray, "n C"] | None:
        """Return which values count; None if all do."""
        return known_values(self._source, *self._place(start, stop))

    def path_of(self, row: int) -> str:
        """Return the file of a row and its position there."""
        return self._source.path_of(self._start + row)

    def _read_unchecked(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        return self._source.read_unchecked(*self._place(start, stop))

    def _good(self, start: int, stop: int) -> Bool[np.ndarray, " n"]:
        return self._source.good(*self._place(start, stop))

    def _place(self, start: int, stop: int) -> tuple[int, int]:
        if not 0 <= start <= stop <= self._rows:
            raise IndexError(
                f"rows [{start}, {stop}) are not among the {self._rows} rows of this part of the "
                "source"
            )
        return self._start + start, self._start + stop


def part(source: Source, start: int, stop: int) -> Part:
    """Return rows [start, stop) of a source, such as its training part or its held-out end.

    A recording that extends beyond the part ends at its edge, also for forecasts.

    Raises:
        ValueError: there are no such rows, or the range is empty.
    """
    total = sum(source.lengths)
    if not 0 <= start < stop <= total:
        raise ValueError(
            f"start and stop must satisfy 0 <= start < stop <= {total}, the rows of the source; "
            f"got start={start}, stop={stop}"
        )
    lengths, begin = [], 0
    for length in source.lengths:
        lengths.append(min(stop, begin + length) - max(start, begin))
        begin += length
    found = Part(source, start, [length for length in lengths if length > 0])
    groups = getattr(source, "groups", ())
    found.groups = tuple(g for g, length in zip(groups, lengths, strict=False) if length > 0)
    return found


class Picked:
    """Whole recordings of a source in another order. Made by `pick`."""

    def __init__(self, source: Any, recordings: Sequence[int]):
        starts = np.cumsum((0, *source.lengths))
        self.names = source.names
        self.lengths = tuple(source.lengths[i] for i in recordings)
        self.time, groups, self.classes, self.notes = about(source)
        self.time_format = getattr(source, "time_format", "")
        self.warnings: tuple[str, ...] = getattr(source, "warnings", ())
        self.groups = tuple(groups[i] for i in recordings) if groups else ()
        self._source = source
        self._starts = starts[list(recordings)]  # of each recording, in the source
        self._edges = np.cumsum((0, *self.lengths))
        if may_mask(source):
            self.good = self._good
        if hasattr(source, "read_unchecked"):
            self.read_unchecked = self._read_unchecked

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Read rows, counted from the first row of the first recording that was picked."""
        return self._joined(self._source.read, start, stop)

    def times(self, start: int, stop: int) -> np.ndarray | None:
        """Return the times of rows; None without a time column."""
        if self.time is None:
            return None
        return self._joined(lambda *rows: times_of(self._source, *rows), start, stop)

    def known(self, start: int, stop: int) -> Bool[np.ndarray, "n C"] | None:
        """Return which values count; None if all do."""
        if not may_mask(self._source):
            return None
        return self._joined(lambda *rows: known_values(self._source, *rows), start, stop)

    def rows_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the row numbers in the source."""
        i = np.searchsorted(self._edges, rows, side="right") - 1
        return self._starts[i] + rows - self._edges[i]

    def path_of(self, row: int) -> str:
        """Return the file of a row and its position there."""
        return self._source.path_of(int(self.rows_of(np.array([row]))[0]))

    def _read_unchecked(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        return self._joined(self._source.read_unchecked, start, stop)

    def _good(self, start: int, stop: int) -> Bool[np.ndarray, " n"]:
        return self._joined(self._source.good, start, stop)

    def _joined(self, read: Callable[[int, int], Any], start: int, stop: int) -> Any:
        """Read rows by one call for each stretch of rows that follow each other in the source."""
        if not 0 <= start <= stop <= self._edges[-1]:
            raise IndexError(
                f"rows [{start}, {stop}) are not among the {self._edges[-1]} rows of the recordings"
            )
        rows = self.rows_of(np.arange(start, stop))
        if not len(rows):
            return read(0, 0)
        ends = np.flatnonzero(np.append(np.diff(rows) != 1, True))
        parts, at = [], 0
        for end in ends.tolist():
            parts.append(read(int(rows[at]), int(rows[end]) + 1))
            at = end + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def pick(source: Source, recordings: Sequence[int]) -> Picked:
    """Pick whole recordings of a source, in the given order, for example those of some people.

    Args:
        recordings: numbers of recordings, from 0, none twice.

    Raises:
        ValueError: there is no such recording, one is named twice, or none is.
    """
    n = len(source.lengths)
    if (
        not recordings
        or len(set(recordings)) < len(recordings)
        or not all(0 <= i < n for i in recordings)
    ):
        raise ValueError(
            f"recordings must be numbers from 0 to {n - 1}, at least one and none twice; got "
            f"{list(recordings)[:20]}"
        )
    return Picked(source, recordings)


class Without:
    """A source without some of its columns. Made by `without`."""

    def __init__(self, source: Any, columns: Sequence[str]):
        self.names, self.lengths = (
            tuple(name for name in source.names if name not in columns),
            source.lengths,
        )
        self._places = [source.names.index(name) for name in self.names]
        self._source = source
        if may_mask(source):
            self.good = source.good

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Read rows of the remaining columns."""
        return self._source.read(start, stop)[:, self._places]

    def known(self, start: int, stop: int) -> Bool[np.ndarray, "n C"] | None:
        """Return which values count; None if all do."""
        found = known_values(self._source, start, stop)
        return None if found is None else found[:, self._places]

    def path_of(self, row: int) -> str:
        """Return the file of a row and its position there."""
        return self._source.path_of(row)


def without(source: Source, columns: Sequence[str]) -> Without:
    """Remove columns from a source, for example one that stops in the test part.

    Raises:
        TypeError: `columns` is one string.
        ValueError: the source has no such column, or no other.
    """
    if isinstance(columns, str):
        raise TypeError(
            f"columns must be a sequence of names; got the string {columns!r}. Write ({columns!r},)"
        )
    if missing := [name for name in columns if name not in source.names]:
        raise ValueError(
            f"columns must be the source's, {', '.join(source.names)}; got {missing[0]!r}"
        )
    if set(columns) == set(source.names):
        raise ValueError(
            f"columns must leave at least one of {', '.join(source.names)}; got all of them"
        )
    return Without(source, columns)


class Standardised:
    """A source with scaled values. Made by `standardised`."""

    def __init__(self, source: Any, scaling: Scaling, dtype: Any = None):
        self.names, self.lengths = source.names, source.lengths
        self._source, self._scaling, self._dtype = source, scaling, dtype
        if may_mask(source):
            self.good = source.good

    def read(self, start: int, stop: int) -> Float[np.ndarray, "n C"]:
        """Read rows, scaled in float64; masked rows, and a target before its first value, are 0."""
        values = self._source.read(start, stop)
        scaled = values - self._scaling.mean
        scaled /= self._scaling.scale  # in place: another array takes longer than the division
        scaled = scaled.astype(self._dtype or values.dtype, copy=False)
        if not may_mask(self._source):
            return scaled
        good = self._source.good(start, stop)[:, None]
        return np.where(good & ~np.isnan(scaled), scaled, 0)

    def known(self, start: int, stop: int) -> Bool[np.ndarray, "n C"] | None:
        """Return which values count; None if all do."""
        return known_values(self._source, start, stop)

    def path_of(self, row: int) -> str:
        """Return the file of a row and its position there."""
        return self._source.path_of(row)


def standardised(source: Source, scaling: Scaling, dtype: Any = None) -> Standardised:
    """Scale a source as it is read: (value - mean) / scale for each column.

    Args:
        source: the rows, in float64 if float32 would coarsen them.
        scaling: from `stream_scaling`.
        dtype: dtype of the scaled values; None: that of the source.

    Raises:
        ValueError: the scaling is for another number of columns.
    """
    C = len(source.names)
    if np.shape(scaling.mean) != (C,) or np.shape(scaling.scale) != (C,):
        raise ValueError(f"scaling must be for the {C} columns of the source; got {scaling}")
    both = (np.asarray(numbers, np.float64) for numbers in (scaling.mean, scaling.scale))
    return Standardised(source, Scaling(*both), dtype)
