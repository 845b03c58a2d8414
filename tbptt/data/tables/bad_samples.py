"""Missing and bad values: reject them with their position, mask, count or fill them in."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Num

SEARCH = 4096  # rows per block when searching for the first or last row that counts


class BadSample(ValueError):
    """A value is missing, NaN, infinite, or too large for the dtype; the message gives where."""


class BadRows(NamedTuple):
    """Result of `count_bad`.

    rows:    number of rows with a bad value
    columns: number of bad values by column name
    first:   position of the first bad row, or None
    """

    rows: int
    columns: dict[str, int]
    first: str | None


def check_rows(source: Any, start: int, values: Num[np.ndarray, "n C"]) -> None:
    """Raise a BadSample if a value is not finite; `values` are rows of the source from `start`."""
    finite = np.isfinite(values)
    if finite.all():
        return
    row, column = map(int, np.argwhere(~finite)[0])
    where, name = source.path_of(start + row), source.names[column]
    value = values[row, column]
    what = "missing or NaN"
    if not np.isnan(value):
        what = f"{value}, not a finite {values.dtype} number"
    raise BadSample(
        f"{where}, column {name!r} is {what}. Correct the file, exclude the column "
        f"(without=({name!r},), --without {name}) unless it is the target, or open it with "
        'missing="mask", "hold" or "interpolate" (--missing; masking_bad for a source that is open)'
    )


class MaskedSource:
    """A `Source` whose bad rows are zeros with mask False. Made by `masking_bad`.

    A bad value of the column `target` does not mask its row: it is held, as `Files.held` gives it.
    """

    def __init__(self, source: Any, target: str | None = None):
        self.names, self.lengths = source.names, source.lengths
        self.time, self.groups, self.classes, self.notes = about(source)
        self.time_format = getattr(source, "time_format", "")
        self.warnings: tuple[str, ...] = getattr(source, "warnings", ())
        self._source = source
        self._target = None if target is None else self.names.index(target)

    def times(self, start: int, stop: int) -> np.ndarray | None:
        """Return the times of rows; None without a time column."""
        return times_of(self._source, start, stop)

    def read_unchecked(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Read rows as the files hold them."""
        return self._source.read_unchecked(start, stop)

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Read rows; every value of a bad row is 0, and `good` returns which rows are good."""
        values = self.read_unchecked(start, stop)
        good = self._good(values)
        if self._target is not None:
            with np.errstate(over="ignore"):
                held = self._source.held(start, stop)[:, 0].astype(values.dtype)
            values[:, self._target] = np.where(np.isfinite(held), held, np.nan)
        return np.where(good[:, None], values, 0)

    def good(self, start: int, stop: int) -> Bool[np.ndarray, " n"]:
        """Return which rows hold finite numbers only, the target excepted."""
        return self._good(self.read_unchecked(start, stop))

    def known(self, start: int, stop: int) -> Bool[np.ndarray, "n C"]:
        """Return which values count: the finite ones of good rows."""
        values = self.read_unchecked(start, stop)
        return np.isfinite(values) & self._good(values)[:, None]

    def _good(self, values: Num[np.ndarray, "n C"]) -> Bool[np.ndarray, " n"]:
        finite = np.isfinite(values)
        if self._target is not None:
            finite[:, self._target] = True
        return np.asarray(finite.all(axis=1))

    def path_of(self, row: int) -> str:
        """Return the file of a row and its position there."""
        return self._source.path_of(row)


def about(source: Any) -> tuple[str | None, tuple, tuple, tuple]:
    """Return time, groups, classes and notes of a source, as `Files` has them."""
    groups, classes, notes = (getattr(source, n, ()) for n in ("groups", "classes", "notes"))
    return getattr(source, "time", None), groups, classes, notes


def times_of(source: Any, start: int, stop: int) -> np.ndarray | None:
    """Return the times of rows, `[n]` datetime64[us] or float64; None without a time column."""
    return source.times(start, stop) if hasattr(source, "times") else None


def masking_bad(source: Any) -> MaskedSource:
    """Mask rows with a value that is missing, NaN or infinite, instead of raising an error.

    At such a step `mask` is False: the carry is held, and neither the step nor a forecast of it
    counts. Check their number with `count_bad` before training. Only values are masked: text in
    place of a number, a row of the wrong width and a changed file remain errors.

    Args:
        source: from `open_source`, or a part of it (`part`).
    """
    if not hasattr(source, "read_unchecked"):
        raise TypeError(
            "masking_bad takes a source from open_source, or a view of one, before it is "
            f"standardised; got {type(source).__name__}"
        )
    return MaskedSource(source)


def good_rows(source: Any, start: int, stop: int) -> Bool[np.ndarray, " n"] | None:
    """Return which rows of a source count; None if the source has no mask, so all rows count."""
    return source.good(start, stop) if may_mask(source) else None


def known_values(source: Any, start: int, stop: int) -> Bool[np.ndarray, "n C"] | None:
    """Return which values of a source count; None if the source has no mask, so all count."""
    if not may_mask(source):
        return None
    if hasattr(source, "known"):
        return source.known(start, stop)
    return np.repeat(source.good(start, stop)[:, None], len(source.names), axis=1)


def may_mask(source: Any) -> bool:
    """Return whether a source masks its bad rows."""
    return hasattr(source, "good")


def first_good_row(source: Any, start: int, stop: int) -> int | None:
    """Return the first of rows [start, stop) that counts, or None."""
    if not may_mask(source):
        return start if start < stop else None
    for at in range(start, stop, SEARCH):
        if len(found := np.flatnonzero(source.good(at, min(at + SEARCH, stop)))):
            return at + int(found[0])
    return None


def last_good_row(source: Any, start: int, stop: int) -> int | None:
    """Return the last of rows [start, stop) that counts, or None."""
    if not may_mask(source):
        return stop - 1 if start < stop else None
    for upto in range(stop, start, -SEARCH):
        at = max(start, upto - SEARCH)
        if len(found := np.flatnonzero(source.good(at, upto))):
            return at + int(found[-1])
    return None


def count_bad(source: Any, block: int = 65536) -> BadRows:
    """Count the bad rows of a source, in one pass over blocks of `block` rows.

    Args:
        source: from `open_source`, `part` or `masking_bad`.
    """
    rows, columns, first = 0, np.zeros(len(source.names), int), None
    total = sum(source.lengths)
    for start in range(0, total, block):
        bad = ~np.isfinite(source.read_unchecked(start, min(start + block, total)))
        rows += int(bad.any(axis=1).sum())
        columns += bad.sum(axis=0)
        if first is None and bad.any():
            first = source.path_of(start + int(np.argmax(bad.any(axis=1))))
    return BadRows(rows, dict(zip(source.names, columns.tolist(), strict=True)), first)


def fill(values: np.ndarray, edges: Sequence[int], how: str, columns: Sequence[int]) -> None:
    """Replace NaN in place, within a recording, as polars does.

        hold          values[t] = the newest value before t
        interpolate   values[t] = the straight line over rows between the values beside t

    What has no value before it in its recording, or for "interpolate" none after it, stays NaN.

    Args:
        values: `[T, C]`, an array or a writable map of a file; one column of one recording is in
            memory.
        edges: first row of each recording, and T.
        columns: the columns to fill.
    """
    import polars as pl

    for begin, end in itertools.pairwise(edges):
        for column in columns:
            found = np.asarray(values[begin:end, column], np.float64)
            if np.isnan(found).any():
                known = pl.Series(found, nan_to_null=True)
                filled = known.forward_fill() if how == "hold" else known.interpolate()
                values[begin:end, column] = filled.to_numpy()
