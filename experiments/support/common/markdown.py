"""Markdown tables, and text between two marker comments of a file."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; a `|` in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |" for cells in lines]


def replace_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what a file has between the lines `begin` and `end`.

    Raises:
      ValueError: the file does not have each of the two lines exactly once, in this order.
    """
    old = path.read_text()
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise ValueError(
            f"{path} must hold each of these two lines once, in this order: {begin!r} and {end!r}"
        )
    before, after = old.split(begin)[0], old.split(end)[1]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
