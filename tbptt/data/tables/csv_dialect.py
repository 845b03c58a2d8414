"""Find the separator, the column names and the layout of a CSV file from its first rows."""

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SEPARATORS = {",": "comma", ";": "';'", "\t": "tab", "|": "'|'"}
SAMPLE = 1000  # rows that are looked at before the columns are tried on all rows


class Dialect(NamedTuple):
    """Layout of a CSV file.

    separator: the character between cells
    names:     the columns, an unnamed index included
    unnamed:   name of an index column without a name of its own, as pandas writes it, or None
    trailing:  "" if rows end in their last cell; "header" or "rows" if they end in a separator
               (in the header too, or only below it)
    cells:     `[rows][columns]`, the first rows, stripped of blanks
    """

    separator: str
    names: tuple[str, ...]
    unnamed: str | None
    trailing: str
    cells: list[list[str]]


def dialect_of(lines: Sequence[str], path: Path) -> Dialect:
    """Return the layout of a CSV file.

    The separator is the one of `SEPARATORS` that cuts the header into most cells, among those for
    which at least half of the rows have as many.

    Args:
        lines: the first lines of the file.

    Raises:
        ValueError: the first row does not name the columns, or the file is binary.
    """
    if any("\0" in line for line in lines):
        raise ValueError(f"{path} holds zero bytes, so it is a binary file; expected CSV text")
    tried = {mark: _rows(lines, mark) for mark in SEPARATORS}
    separator = max(tried, key=lambda mark: _fit(tried[mark]))
    header, *rows = tried[separator]
    rows = [row for row in rows if any(row)]
    width, trailing, index = len(header), "", None
    if (
        rows
        and width > 1
        and header[-1] == ""
        and all(row[width - 1 :] in ([""], []) for row in rows)
    ):
        header, trailing = header[:-1], "header"
    elif rows and all(len(row) == width + 1 and row[-1] == "" for row in rows):
        trailing = "rows"
    named = header[1:]
    if len(header) > 1 and header[0] in ("", "Unnamed: 0"):
        index = header[0] or ("index" if "index" not in named else "unnamed index")
        header = [index, *named]
    _check_names(header, index, path)
    return Dialect(separator, tuple(header), index, trailing, rows)


def is_number(cell: str) -> bool:
    """Return whether a cell is a number with a decimal point; "1_000" is one only in Python."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell and cell.isascii()


def check_widths(path: Path, dialect: Dialect) -> None:
    """Raise a ValueError for the first row that has more or fewer cells than the header.

    One pass in plain Python, one row in memory; .zst files are not read.
    """
    if path.suffix.lower() == ".zst":
        return
    width = len(dialect.names) + (dialect.trailing == "header")
    widths = {width, width + 1} if dialect.trailing == "rows" else {width}
    reader = gzip.open if path.suffix.lower() == ".gz" else open
    with reader(path, "rt", encoding="utf-8-sig", newline="") as file:
        rows, row = csv.reader(file, delimiter=dialect.separator, strict=True), 0
        try:
            for row, cells in enumerate(rows, start=1):
                if any(cell.strip() for cell in cells) and row > 1 and len(cells) not in widths:
                    ends = len(cells) < width and not any(rows)
                    last = " and is the last one: the file ends in the middle of it" if ends else ""
                    raise ValueError(
                        f"{path}, row {row} has {len(cells)} cells{last}; the header has {width} "
                        "columns. Correct or remove the row"
                    )
        except csv.Error as error:
            raise ValueError(f"{path}, after row {row}, is not a CSV table: {error}") from error


def raise_not_utf8(path: Path) -> None:
    """Raise a ValueError that gives the first byte that is not UTF-8, and its row."""
    row = 0
    reader = gzip.open if path.suffix.lower() == ".gz" else open
    with reader(path, "rb") as file:
        for row, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 text: {error.reason} (byte 0x{line[error.start]:02x} in "
                    f"row {row}). Save it as UTF-8"
                ) from error
    raise ValueError(f"{path} is not UTF-8 text. Save it as UTF-8")


def _rows(lines: Sequence[str], separator: str) -> list[list[str]]:
    rows = csv.reader(
        (line + "\n" for line in lines), delimiter=separator, skipinitialspace=separator != "\t"
    )
    return [[cell.strip() for cell in row] for row in rows] or [[]]


def _fit(rows: list[list[str]]) -> int:
    """Return the number of cells of the header; 0 if most rows have another number."""
    width = len(rows[0])
    filled = [row for row in rows[1:] if any(row)]
    alike = sum(len(row) in (width, width + 1) for row in filled)
    return width if 2 * alike >= len(filled) else 0


def _check_names(names: Sequence[str], index: str | None, path: Path) -> None:
    if not names or "" in names:
        raise ValueError(f"{path}, row 1 must give every column a name; got {tuple(names)}")
    if index is None and all(is_number(name) for name in names):
        raise ValueError(
            f"{path}, row 1 must be a header, the names of the columns; got the numbers "
            f"{', '.join(names)}. Add a row of names above them"
        )
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"{path}, row 1 names more than one column {twice[0]!r}. Rename one")
