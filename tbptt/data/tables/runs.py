"""Stretches of equal text in a column: groups, which separate recordings, and labels."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl


SEPARATOR = "\x1f"  # between the values of several columns that are one group


def joined(texts: Sequence["pl.Expr | pl.Series"]) -> "pl.Expr":
    """Return the text of a group from those of its columns; null if one of them is missing."""
    import polars as pl

    return pl.concat_str(texts, separator=SEPARATOR)


def group_value(text: str) -> str | tuple[str, ...]:
    """Return a group as text; of several columns, as the text of each."""
    return tuple(text.split(SEPARATOR)) if SEPARATOR in text else text


def shown_group(text: str | None) -> str:
    """Return a group for messages."""
    return (text or "").replace(SEPARATOR, ", ")


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


def check_groups(
    groups: Runs, rows: int, times: np.ndarray | None, name: str, place: Callable[[int], str]
) -> list[str]:
    """Raise a ValueError if the rows of different groups are mixed; return a note otherwise."""
    values, starts = groups.values, groups.starts
    if None in values:
        raise ValueError(
            f"{place(starts[values.index(None)])}, column {name} is missing, so the row belongs "
            "to no group. Fill it in, or remove the row"
        )
    distinct = len(set(values))
    if len(values) == distinct:
        return []
    seen: set[str | None] = set()
    back = next(i for i, value in enumerate(values) if value in seen or seen.add(value))
    mixed = np.median(np.diff(starts, append=rows)) <= 1
    if times is not None:
        mixed = any(times[start] <= times[start - 1] for start in starts[1:])
    said = (
        f"{place(starts[back])}, column {name}: group {shown_group(values[back])!r} comes back "
        f"after other groups; {distinct} groups are in {len(values)} stretches"
    )
    if mixed:
        raise ValueError(
            f"{said}. The rows of the groups are mixed: sort the file by group, then time, or pass "
            "sort=True (--sort)"
        )
    return [f"{said}. Each stretch is a recording; with sort=True (--sort) each group is one"]
