"""Find separator, names and layout of a CSV file, split it into blocks, and locate its faults."""

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tbptt.data.tables.scan import shortened

SEPARATORS = {",": "comma", ";": "';'", "\t": "tab", "|": "'|'"}
CHUNK = 1 << 21  # bytes parsed at once
SAMPLE = 1000  # rows that are looked at before the columns are tried on all rows
# Cells that denote a missing value.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "-nan", "null", "NULL", "None", "#N/A")


class Dialect(NamedTuple):
    """Layout of a CSV file.

    separator: the character between cells
    names:     the columns, an unnamed index included
    unnamed:   name of an index column without a name of its own, as pandas writes it, or None
    trailing:  "" if rows end in their last cell; "header" or "rows" if they end in a separator
               (in the header too, or only below it)
    cells:     name -> the cells of the first rows that are not missing, stripped of blanks
    """

    separator: str
    names: tuple[str, ...]
    unnamed: str | None
    trailing: str
    cells: dict[str, list[str]]


def _first_lines(path: Path) -> list[str]:
    """Return the first lines of a CSV file, decompressed."""
    if path.suffix.lower() == ".zst":
        import polars as pl

        whole: Any = {"has_header": False, "separator": "\x1f", "quote_char": None}  # a line a cell
        rows = pl.scan_csv(path, infer_schema=False, glob=False, **whole).head(SAMPLE + 1)
        return [line or "" for line in rows.collect(engine="streaming").to_series()]
    with _opened(path)(path, "rb") as file:
        found = [file.readline(CHUNK) for _ in range(SAMPLE + 1)]
    if not found[0]:
        raise ValueError(
            f"{path} is empty; expected a row of column names and at least one row of numbers. "
            "Write it again"
        )
    try:
        text = b"".join(found).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise explained(path, error) from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def dialect_of(path: Path) -> Dialect:
    """Return the layout of a CSV file by its first lines.

    The separator is the one of `SEPARATORS` that splits the header into most cells, among those for
    which at least half of the rows have as many.

    Raises:
        ValueError: the first row does not name the columns, or the file is binary.
    """
    lines = _first_lines(path)
    if any("\0" in line for line in lines):
        raise ValueError(
            f"{path} holds zero bytes, so it is a binary file; expected CSV text. Export it as CSV"
        )
    tried = {mark: _rows(lines, mark) for mark in SEPARATORS}
    separator = max(tried, key=lambda mark: _fit(tried[mark]))
    header, *rows = tried[separator]
    rows = [row for row in rows if any(row)]
    width, trailing, index = len(header), "", None
    if rows and width > 1 and header[-1] == "" and all(r[width - 1 :] in ([""], []) for r in rows):
        header, trailing = header[:-1], "header"
    elif rows and all(len(row) == width + 1 and row[-1] == "" for row in rows):
        trailing = "rows"
    if len(header) > 1 and header[0] in ("", "Unnamed: 0"):
        index = header[0] or ("index" if "index" not in header[1:] else "unnamed index")
        header = [index, *header[1:]]
    if not header or "" in header:
        raise ValueError(
            f"{path}, row 1 must give every column a name; got {', '.join(map(repr, header))}. "
            "Write the missing names"
        )
    if index is None and all(is_number(name) for name in header):
        raise ValueError(
            f"{path}, row 1 must be a header, the names of the columns; got the numbers "
            f"{', '.join(header)}. Add a row of names above them"
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{path}, row 1 names more than one column {twice[0]!r}. Rename one")
    cells = {
        name: [row[i] for row in rows if i < len(row) and row[i] not in MISSING]
        for i, name in enumerate(header)
    }
    return Dialect(separator, tuple(header), index, trailing, cells)


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


def blocks_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file in blocks of about `CHUNK` bytes.

    A pass of polars' own over a whole file takes ten times the memory.
    """
    with _opened(path)(path, "rb") as file:
        rest = b""
        while data := file.read(CHUNK):
            rest += data
            end = rest.rfind(b"\n") + 1
            while end and rest.count(b'"', 0, end) % 2:
                end = rest.rfind(b"\n", 0, end - 1) + 1
            if end:
                yield rest[:end]
                rest = rest[end:]
        if rest:
            yield rest


def _opened(path: Path) -> Any:
    """Return the function that opens a plain or compressed file."""
    return gzip.open if path.suffix.lower() == ".gz" else open


def is_number(cell: str) -> bool:
    """Return whether a cell is a number with a decimal point; "1_000" is one only in Python."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell and cell.isascii()


def explained(path: Path, error: Exception, dialect: Dialect | None = None) -> ValueError:
    """Return the error for a file that polars cannot read; raise one that gives the row, if any."""
    if "utf-8" in str(error):
        _raise_not_utf8(path)
    if dialect is not None:
        check_widths(path, dialect)
    return ValueError(
        f"{path} is not a CSV table: {shortened(error)}. Correct it, or export it again"
    )


def check_widths(path: Path, dialect: Dialect) -> None:
    """Raise a ValueError for the first row that has more or fewer cells than the header.

    One pass in plain Python, one row in memory; .zst files are not read.
    """
    if path.suffix.lower() == ".zst":
        return
    width = len(dialect.names) + (dialect.trailing == "header")
    widths = {width, width + 1} if dialect.trailing == "rows" else {width}
    with _opened(path)(path, "rt", encoding="utf-8-sig", newline="") as file:
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
            raise ValueError(
                f"{path}, after row {row}, is not a CSV table: {error}. Correct the quotes"
            ) from error


def _raise_not_utf8(path: Path) -> None:
    """Raise a ValueError that gives the first byte that is not UTF-8, and its row."""
    with _opened(path)(path, "rb") as file:
        for row, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 text: {error.reason} (byte 0x{line[error.start]:02x} in "
                    f"row {row}). Save it as UTF-8"
                ) from error
    raise ValueError(f"{path} is not UTF-8 text. Save it as UTF-8")
