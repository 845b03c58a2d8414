"""Bad samples in a stream: refused with their place, or masked and counted where the caller says so."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Num

SEARCH = 4096  # rows looked through at once for the first one that counts


class BadSample(ValueError):
    """A value of a recording is missing, NaN, infinite, or too large for the dtype; the message says which and where."""


class BadRows(NamedTuple):
    """What `count_bad` found.

    rows:    how many rows hold a bad value
    columns: by column's name, how many
    first:   where the first one is, or None
    """

    rows: int
    columns: dict[str, int]
    first: str | None


def refuse_bad(source: Any, start: int, values: Num[np.ndarray, "n C"]) -> None:
    """Raises a BadSample if a value is not finite; `values` are the rows of the source from `start` on."""
    finite = np.isfinite(values)
    if finite.all():
        return
    row, column = map(int, np.argwhere(~finite)[0])
    where, name = source.path_of(start + row), source.names[column]
    value = values[row, column]
    what = "missing or NaN" if np.isnan(value) else f"{value}, not a finite {values.dtype} number"
    raise BadSample(
        f"{where}, column {name!r} is {what}. Nothing is filled in silently: correct the file, leave the column out "
        "(`columns`), or let such steps not count (`masking_bad`)"
    )


class MaskedSource:
    """A `Source` whose bad rows are zeros that do not count. Made by `masking_bad`."""

    def __init__(self, source: Any):
        self.names, self.lengths = source.names, source.lengths
        self._source = source

    def read_unchecked(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Reads the rows as the files have them."""
        return self._source.read_unchecked(start, stop)

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Reads rows; every value of a bad one is 0, and `good` says which they are."""
        values = self.read_unchecked(start, stop)
        return np.where(_finite(values)[:, None], values, 0)

    def good(self, start: int, stop: int) -> Bool[np.ndarray, " n"]:
        """Tells which rows hold finite numbers only."""
        return _finite(self.read_unchecked(start, stop))

    def path_of(self, row: int) -> str:
        """Says which file a row is from, and where in it."""
        return self._source.path_of(row)


def masking_bad(source: Any) -> MaskedSource:
    """Takes rows with a value that is missing, NaN or infinite out of a source, instead of refusing them.

    Such a step does not exist for the model: `mask` is False, the carry is held over it, and neither it nor a forecast of
    it counts. How many there are says `count_bad`; look at that before training. Only values are forgiven: text where
    a number should be, a row of a wrong width and a file that changes stay errors.

    Args:
        source: from `open_source`, or a view of it (`part`, `split_by`).
    """
    if not hasattr(source, "read_unchecked"):
        raise TypeError(
            f"masking_bad wants a source from open_source, or a view of one, before it is standardised; got "
            f"{type(source).__name__}"
        )
    return MaskedSource(source)


def good_rows(source: Any, start: int, stop: int) -> Bool[np.ndarray, " n"] | None:
    """Tells which rows of a source count; None if its bad rows are refused, so that all of them do."""
    return source.good(start, stop) if may_mask(source) else None


def may_mask(source: Any) -> bool:
    """Tells whether a source masks its bad rows."""
    return hasattr(source, "good")


def first_good_row(source: Any, start: int, stop: int) -> int | None:
    """Returns the first of rows [start, stop) that counts, or None."""
    if not may_mask(source):
        return start if start < stop else None
    for at in range(start, stop, SEARCH):
        if len(found := np.flatnonzero(source.good(at, min(at + SEARCH, stop)))):
            return at + int(found[0])
    return None


def last_good_row(source: Any, start: int, stop: int) -> int | None:
    """Returns the last of rows [start, stop) that counts, or None."""
    if not may_mask(source):
        return stop - 1 if start < stop else None
    for upto in range(stop, start, -SEARCH):
        at = max(start, upto - SEARCH)
        if len(found := np.flatnonzero(source.good(at, upto))):
            return at + int(found[-1])
    return None


def count_bad(source: Any, block: int = 65536) -> BadRows:
    """Counts the bad rows of a source, in one pass that holds `block` rows at a time.

    Args:
        source: from `open_source`, `part`, `split_by` or `masking_bad`.
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


def _finite(values: Num[np.ndarray, "n C"]) -> Bool[np.ndarray, " n"]:
    return np.asarray(np.isfinite(values).all(axis=1))
