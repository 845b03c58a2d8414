"""Where recordings begin, and what is wrong in them: groups, labels and steps of the time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tbptt.data.tables.bad_samples import BadSample
from tbptt.data.tables.table import Table

if TYPE_CHECKING:
    import polars as pl

SEPARATOR = "\x1f"  # between the values of several columns that are one group
BLOCK = 1 << 20  # rows compared at once
GAP = 1.5  # a step longer than this many median steps is a gap
NAME_GROUP = "; or name the column of the recordings by `group` (--group)"
Class = int | float | str


class Runs:
    """Stretches of equal text in a column: their values and first rows."""

    def __init__(self) -> None:
        self.values: list[str | None] = []
        self.starts: list[int] = []

    def add(self, column: "pl.Series", at: int, numbers: dict[str, int] | None = None) -> Any:
        """Add a block that starts at a row; with `numbers`, return the number of each text."""
        runs = column.rle().struct.unnest()
        values, lengths = runs["value"].to_list(), runs["len"].to_numpy()
        starts = at + np.cumsum(lengths) - lengths
        for value, start in zip(values, starts.tolist(), strict=True):
            if not self.values or value != self.values[-1]:
                self.values.append(value)
                self.starts.append(start)
        if numbers is not None:
            found = [np.nan if v is None else numbers.setdefault(v, len(numbers)) for v in values]
            return np.repeat(np.asarray(found, np.float64), lengths)

    def at(self, rows: Sequence[int]) -> list[str | None]:
        """Return the text at some rows."""
        places = np.searchsorted(self.starts, rows, side="right") - 1
        return [self.values[place] for place in places]

    def check_constant(self, starts: Sequence[int], place: Callable[[int], str], name: str) -> None:
        """Raise a ValueError at the first row whose text differs from that of its recording."""
        begins = np.searchsorted(starts, self.starts, side="right") - 1
        for i in range(1, len(self.starts)):
            if self.starts[i] != starts[begins[i]] and None not in self.values[i - 1 : i + 1]:
                raise ValueError(
                    f"{place(self.starts[i])}, column {name!r} is {self.values[i]!r}, but "
                    f"{self.values[i - 1]!r} in the row before, of the same recording. A recording "
                    "has one label: correct it, or give `group` (--group), a column that changes "
                    "there"
                )

    def check_apart(
        self, rows: int, times: np.ndarray | None, name: str, place: Callable[[int], str]
    ) -> list[str]:
        """Raise a ValueError if the rows of different groups are mixed; return notes otherwise."""
        values, starts = self.values, self.starts
        if None in values:
            raise ValueError(
                f"{place(starts[values.index(None)])}, column {name} is missing, so the row "
                "belongs to no group. Fill it in, or remove the row"
            )
        distinct = len(set(values))
        if len(values) == distinct:
            return []
        seen: set[str | None] = set()
        back = next(i for i, value in enumerate(values) if value in seen or seen.add(value))
        mixed = np.median(np.diff(starts, append=rows)) <= 1
        if times is not None:
            mixed = any(times[start] <= times[start - 1] for start in starts[1:])
        group = (values[back] or "").replace(SEPARATOR, ", ")
        said = (
            f"{place(starts[back])}, column {name}: group {group!r} comes back after other groups; "
            f"{distinct} groups are in {len(values)} stretches"
        )
        if mixed:
            raise ValueError(
                f"{said}. The rows of the groups are mixed: sort the file by group, then time, or "
                "pass sort=True (--sort)"
            )
        return [f"{said}. Each stretch is a recording; with sort=True (--sort) each group is one"]


def joined(texts: Sequence["pl.Expr"]) -> "pl.Expr":
    """Return the text of a group from those of its columns; null if one of them is missing."""
    import polars as pl

    return pl.concat_str(texts, separator=SEPARATOR)


def group_value(text: str) -> str | tuple[str, ...]:
    """Return a group as text; of several columns, as the text of each."""
    return tuple(text.split(SEPARATOR)) if SEPARATOR in text else text


def class_value(text: str) -> Class:
    """Return a label as a number if it is one: 7 for "7" and "7.0"; but "007" remains text."""
    try:
        number = float(text)
    except ValueError:
        return text
    if str(int(number) if number.is_integer() else number) == text.removesuffix(".0"):
        return int(number) if number.is_integer() else number
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def number_classes(
    tables: Sequence[Table], label: str, classes: Sequence[Class] | None
) -> tuple[list[Table], tuple[Class, ...]]:
    """Number the labels of several tables alike: class i is the number i in their last column.

    Args:
        tables: with the label as last column, each with numbers of its own.
        classes: all classes; None takes those of the tables: numbers, then text, ascending.

    Raises:
        BadSample: a label is not one of `classes`.
    """
    values = [[class_value(text) for text in table.classes] for table in tables]
    found = {value for each in values for value in each}
    known = (
        sorted(found, key=lambda value: (isinstance(value, str), value))
        if classes is None
        else [class_value(str(value)) for value in classes]
    )
    made = []
    for table, own in zip(tables, values, strict=True):
        if unknown := [i for i, value in enumerate(own) if value not in known]:
            row = _first(table, unknown[0])
            raise BadSample(
                f"{table.file.path}, {table.place(row)}, column {label!r} is {own[unknown[0]]}, "
                "which is not a class of the training data "
                f"({', '.join(map(str, known))}). Correct it, or predict without --score"
            )
        made.append(table._replace(read=_renumbered(table, [known.index(v) for v in own])))
    return made, tuple(known)


def _renumbered(table: Table, numbers: Sequence[int]) -> Callable[[int, int], np.ndarray]:
    of = np.asarray(numbers)

    def read(start: int, stop: int) -> np.ndarray:
        values = table.read(start, stop).astype(np.float64)
        known = ~np.isnan(values[:, -1])
        values[known, -1] = of[values[known, -1].astype(int)]
        return values

    return read


def _first(table: Table, number: int) -> int:
    """Return the first row whose label has a number."""
    rows = sum(table.lengths)
    for start in range(0, rows, BLOCK):
        found = table.read(start, min(start + BLOCK, rows))[:, -1] == number
        if found.any():
            return start + int(found.argmax())
    raise AssertionError("the number is not in the table")


class Steps(NamedTuple):
    """Result of `check_steps`.

    gaps:     rows that follow a gap
    warnings: one sentence for each fault
    note:     first and last time, and the usual step
    """

    gaps: list[int]
    warnings: list[str]
    note: str


def check_steps(
    times: np.ndarray,
    starts: Sequence[int],
    path: Path,
    place: Callable[[int], str],
    name: str,
    split: bool,
) -> Steps:
    """Check the steps of the time within each recording, in two passes over blocks.

    Args:
        times: `[T]`, dates or numbers.
        starts: first row of each recording.
        path: the file, for messages.
        place: row -> its position for messages.
        name: the column.
        split: whether a gap starts a new recording; otherwise it is a warning.

    Raises:
        ValueError: the time falls within a recording.
    """
    falls, equal, lost, sample = [0, -1], [0, -1], [0, -1], []
    for at, step in _steps(times, starts):
        _count(falls, at, step < np.zeros((), step.dtype))
        _count(equal, at, step == np.zeros((), step.dtype))
        if sum(map(len, sample)) < BLOCK:
            sample.append(step[step > np.zeros((), step.dtype)])
    if row := falls[1] * bool(falls[0]):
        raise ValueError(
            f"{path}, {place(row)}, column {name!r} falls from {time_text(times[row - 1])} to "
            f"{time_text(times[row])}; {falls[0]} of {len(times)} times do. Sort the file by "
            "time, or pass sort=True (--sort), which sorts the rows by group and time"
            f"{NAME_GROUP if len(starts) == 1 else ''}"
        )
    for at in range(0, len(times), BLOCK):
        _count(lost, at, np.isnan(times[at : at + BLOCK]))
    positive = np.concatenate(sample) if sample else np.zeros(0, times.dtype)
    usual = float(np.median(positive.astype(np.float64))) if len(positive) else np.nan
    short, longest, gaps = [0, -1], None, []
    for at, step in _steps(times, starts) if len(positive) else ():
        number = step.astype(np.float64)
        number[np.isnan(step)] = usual
        _count(short, at, (number > 0) & (number < usual / 2))
        found = np.flatnonzero(number > GAP * usual)
        gaps += (at + found).tolist()
        if found.size and (longest is None or number.max() > longest[0]):
            longest = float(number.max()), at + int(number.argmax())
    unit = times.dtype if times.dtype.kind == "M" else None
    said = _step(usual, unit) if len(positive) else ""
    warnings = []
    for (count, row), what in (
        (equal, "equal to the one before"),
        (lost, "missing"),
        (short, f"less than half the usual step, {said}, after the one before"),
    ):
        if count:
            verb = "is" if count == 1 else "are"
            warnings.append(
                f"{path}, {place(row)}: column {name!r}: {count} of {len(times)} times {verb} "
                f"{what}, this one first"
            )
    if longest and not split:
        warnings.append(
            f"{path}, {place(gaps[0])}: column {name!r}: {len(gaps)} steps are longer than "
            f"{GAP:g} times the usual one, {said}; this row follows the first. The longest, "
            f"{_step(longest[0], unit)}, ends at {place(longest[1])}. The steps are treated as "
            'equal; with gaps="split" (--gaps split) each gap starts a new recording'
        )
    note = f"the time is column {name!r}, {time_text(times[0])} to {time_text(times[-1])}"
    note += f", usual step {said}" if said else ""
    if gaps and split:
        note += f"; {len(gaps)} gaps of more than {GAP:g} steps start new recordings"
    return Steps(gaps, warnings, note)


def time_text(time: Any) -> str:
    """Return a time for messages, without a part of a second or a day that is zero."""
    if isinstance(time, np.datetime64):
        text = str(time).replace("T", " ")
        return text.removesuffix(".000000").removesuffix(" 00:00:00")
    return f"{time:g}"


def time_span(seconds: int | float) -> str:
    """Return a time in words: "15 minutes", "1 day 6 hours", "0.25 seconds"."""
    parts, rest = [], round(seconds, 6)
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        count = rest // size if size > 1 else rest
        rest = round(rest - count * size, 6)
        if count:
            parts.append(f"{count:g} {unit}" + "s" * (count != 1))
    return " ".join(parts) or "0 seconds"


def _steps(times: np.ndarray, starts: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (row, steps) of consecutive rows in blocks; the step into a recording is NaN."""
    edges = np.asarray(starts)
    for at in range(1, len(times), BLOCK):
        stop = min(at + BLOCK, len(times))
        step = np.diff(times[at - 1 : stop])
        here = edges[(edges >= at) & (edges < stop)] - at
        step[here] = np.array("NaT", step.dtype) if step.dtype.kind == "m" else np.nan
        yield at, step


def _count(found: list[int], at: int, faults: np.ndarray) -> None:
    """Add to [number of faults, row of the first one]."""
    if faults.any():
        found[1] = at + int(np.argmax(faults)) if not found[0] else found[1]
        found[0] += int(faults.sum())


def _step(step: float, dtype: np.dtype | None) -> str:
    return f"{step:g}" if dtype is None else time_span(step / 1e6)
