"""Open a table in polars: what each column holds, which ones are read, and the query of rows."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tbptt.data.tables.table import check_names, open_npy

if TYPE_CHECKING:
    import polars as pl

SAMPLE = 1000  # rows in which a column is expected to have a value
BLOCK = 1 << 16  # rows read at once
GROUP = 1 << 17  # rows of a Parquet file read at once; fewer are decoded more slowly
ROW = "\x1frow"  # a name that no column has


class Column(NamedTuple):
    """What a column holds.

    kind:    "number", "date" or "text"
    value:   expression of its values: float64 with null or NaN for missing, or microseconds
    text:    expression of its values as text, null for missing
    bad:     number of cells that are neither missing nor of the kind
    present: number of cells that are not missing; 1 if there are some
    about:   the format of dates, or the type of a column that is neither numbers nor dates
    """

    kind: str
    value: "pl.Expr"
    text: "pl.Expr"
    bad: int
    present: int
    about: str = ""


class Scan(NamedTuple):
    """A table in polars.

    open:    query of all rows; the columns that it is given are text as in the file
    rows:    number of rows, without empty ones at the end; None before they are read
    columns: what each column holds, by name
    unnamed: name of an index column that pandas wrote without a name, or None
    first:   number of the first row in messages: 2 below a header, otherwise 0
    notes:   how the file was read
    unsure:  expression that is true where a row may have too few cells, or None
    blocks:  (columns that are text, expressions) -> the rows in order, in little memory, or None
    """

    path: Path
    open: "Callable[[Collection[str]], pl.LazyFrame]"
    rows: int | None
    columns: dict[str, Column]
    unnamed: str | None
    first: int
    notes: list[str]
    unsure: "pl.Expr | None" = None
    blocks: "Callable[[Collection[str], list[pl.Expr]], Iterator[pl.DataFrame]] | None" = None

    def place(self, row: int) -> str:
        """Return the position of a row for messages."""
        return place_of(self.first, row)

    def first_bad(self, name: str) -> tuple[int, str]:
        """Return the row of the first cell that is not of the column's kind, and the cell."""
        import polars as pl

        text, value = self.columns[name].text, self.columns[name].value
        bad = text.is_not_null() & value.is_null()
        rows = self.open(tuple(self.columns)).with_row_index(ROW).filter(bad)
        found = rows.select(pl.col(ROW), text.alias("cell")).head(1)
        return found.collect(engine="streaming").row(0)


def place_of(first: int, row: int) -> str:
    """Return the position of a row for messages, with the convention of its file."""
    return f"row {row + 2} (the header is row 1)" if first else f"row {row} (from 0)"


def need_polars(path: Path) -> None:
    """Raise an ImportError with the install command unless polars is installed."""
    try:
        import polars  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs polars, which is not installed: pip install 'tbptt[data]'. "
            ".npy files without further options and text files do not need it"
        ) from error


def scan_parquet(path: Path) -> Scan:
    """Open a Parquet file.

    Raises:
        ValueError: the file is not a Parquet file, or was cut short.
    """
    import polars as pl

    try:
        lazy = pl.scan_parquet(path, glob=False, low_memory=True)
        lazy.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"cannot read {path} as a Parquet file: {shortened(error)}. If it was cut short, copy "
            "it again"
        ) from error

    found = _typed(path, lazy)
    rows = found.rows or 0

    def blocks(texts: Any, picked: "list[pl.Expr]") -> "Iterator[pl.DataFrame]":
        # A streaming query reads several row groups ahead, and all of a file that is one group.
        for start in range(0, rows, GROUP):
            yield lazy.slice(start, GROUP).select(picked).collect()

    return found._replace(blocks=blocks)


def scan_npy(path: Path) -> Scan:
    """Open a .npy file, whose columns are numbers; rows are read in blocks."""
    import polars as pl
    from polars.io.plugins import register_io_source

    table = open_npy(path)
    total = sum(table.lengths)

    def frame(start: int, stop: int) -> "pl.DataFrame":
        rows = table.read(start, stop)
        known = rows.dtype.kind != "f" or rows.dtype.itemsize in (4, 8)
        dtype = rows.dtype.newbyteorder("=") if known else np.float64
        return pl.DataFrame(rows.astype(dtype), schema=list(table.names), orient="row")

    def blocks(columns: Any, keep: Any, rows: int | None, size: Any) -> Iterator["pl.DataFrame"]:
        end = total if rows is None else min(rows, total)
        for start in range(0, end, BLOCK):
            found = frame(start, min(start + BLOCK, end))
            found = found if keep is None else found.filter(keep)
            yield found if columns is None else found.select(columns)

    return _typed(path, register_io_source(blocks, schema=frame(0, 1).schema))


def _typed(path: Path, lazy: "pl.LazyFrame") -> Scan:
    """Return the columns of a file that gives their types."""
    import polars as pl

    schema = lazy.collect_schema()
    counts = lazy.head(SAMPLE).select(pl.all().count()).collect()
    present = counts.row(0, named=True) if schema else {}
    if empty := [name for name in schema if not present[name]]:
        counts = lazy.select(pl.col(empty).count()).collect(engine="streaming")
        present |= counts.row(0, named=True)
    columns = {}
    for name, dtype in schema.items():
        column, text = pl.col(name), pl.col(name).cast(pl.String, strict=False)
        kind, value = "text", pl.lit(None, pl.Float64)
        if dtype.is_numeric() or dtype == pl.Boolean:
            kind, value = "number", column.cast(pl.Float64)
        elif dtype in (pl.Date, pl.Datetime):
            kind, value = "date", column.cast(pl.Datetime("us"))
        bad = present[name] if kind == "text" else 0
        columns[name] = Column(kind, value, text, bad, present[name], str(dtype))
    rows = lazy.select(pl.len()).collect(engine="streaming").item()
    return Scan(path, lambda texts: lazy, rows, columns, None, 0, [])


def shortened(error: Exception) -> str:
    """Return the first line of an error of polars."""
    return str(error).strip().splitlines()[0].rstrip(".")


class Reading(NamedTuple):
    """How a table is read; the arguments of `open_source`."""

    columns: tuple[str, ...] | None = None
    time: str | None = None
    group: tuple[str, ...] = ()
    label: str | None = None
    missing: str = "refuse"
    gaps: str = "keep"
    sort: bool = False
    target: str | None = None
    without: tuple[str, ...] = ()


class Roles(NamedTuple):
    """The columns of a table by their use; `left_out` gives a reason for each other column.

    time_format: how the file writes its dates, for `strftime` of polars; "" where it does not say
    """

    numbers: tuple[str, ...]
    time: str | None
    group: tuple[str, ...]
    label: str | None
    left_out: dict[str, str]
    time_format: str = ""


def roles_of(scan: Scan, reading: Reading) -> Roles:
    """Choose the columns of a table.

    time:    the one named; else the only column of dates, unless it is used otherwise
    numbers: the ones named; else all columns of numbers that have no other use and are not in
             `without`, and then the target if it is in `without`

    Raises:
        ValueError: a named column does not exist or does not hold what it is used for; no column
            holds numbers; a column of numbers holds a cell that is none. The message gives the
            row.
    """
    columns, path = scan.columns, scan.path
    named = (*(reading.columns or ()), reading.time, *reading.group, reading.label, reading.target)
    check_names(path, columns, [name for name in named if name is not None])
    if unknown := [name for name in reading.without if name not in columns]:
        raise ValueError(
            f"without (--without) must name columns of {path}, {', '.join(columns)}; got "
            f"{unknown[0]!r}"
        )
    dates = [
        name
        for name in columns
        if columns[name].kind == "date" and name not in (*named, *reading.without)
    ]
    time = reading.time or (dates[0] if len(dates) == 1 else None)
    if time is not None and columns[time].kind == "text":
        row, cell = scan.first_bad(time)
        raise ValueError(
            f"{path}, {scan.place(row)}, column {time!r} is neither a number nor a date: {cell!r}. "
            "Write dates as 2024-01-31 or 2024-01-31 12:30:00"
        )
    used = {time, *reading.group, reading.label, *reading.without} - {None}
    if reading.columns is not None:
        chosen, left_out = reading.columns, {}
    else:
        if scan.unnamed is not None and scan.unnamed not in used:
            scan.notes.append(f"column {scan.unnamed!r}, a row index, is left out")
            used.add(scan.unnamed)
        left_out = {
            name: _reason(scan, name)
            for name, column in columns.items()
            if name not in used and (column.kind != "number" or not column.present)
        }
        chosen = tuple(name for name in columns if name not in used and name not in left_out)
        left_out.pop(reading.target or "", None)
    if not chosen and reading.label is None and reading.target is None:
        why = "; ".join(f"{name} is {why}" for name, why in left_out.items())
        raise ValueError(
            f"{path} has no column of numbers besides the time, the groups and those of `without`"
            f"{': ' * bool(why)}{why}. Write its numbers as 1.5, or as 1,5 in a file with ';' "
            "between the columns"
        )
    if reading.target is not None and reading.target not in chosen:
        chosen = (*chosen, reading.target)
    for name in chosen:
        _check_numbers(scan, name, reading.target)
    if reading.target is not None and reading.target in used - {*reading.without}:
        raise ValueError(
            f"{path}, column {reading.target!r} is the time, a group, the label or the row index, "
            "so it is no target. Name another column as the target (--target), or the columns to "
            "read in `columns` (--columns)"
        )
    return Roles(chosen, time, reading.group, reading.label, left_out, _format_of(scan, time))


def _format_of(scan: Scan, time: str | None) -> str:
    about = "" if time is None else scan.columns[time].about
    return {"Date": "%Y-%m-%d"}.get(about, about.replace("%#z", "Z") if "%" in about else "")


def _check_numbers(scan: Scan, name: str, target: str | None) -> None:
    column = scan.columns[name]
    if column.kind == "number" and not column.bad:
        return
    remedy = f"exclude the column: without=({name!r},) (--without {name})"
    if name == target:
        remedy = "name another target (--target)"
    if column.kind == "date" or scan.first != 2:
        kind, more = column.about, "convert it"
        if column.kind == "date":
            kind, more = "dates", "name it as the time (`time`, --time)"
        raise ValueError(
            f"{scan.path}, column {name!r} holds {kind}, not numbers. "
            f"{remedy[0].upper()}{remedy[1:]}, or {more}"
        )
    row, cell = scan.first_bad(name)
    raise ValueError(
        f"{scan.path}, row {row + scan.first}, column {name!r} is not a number: {cell!r}, one of "
        f"{column.bad} such cells of {column.present}. Correct the file, or {remedy}"
    )


def _reason(scan: Scan, name: str) -> str:
    column = scan.columns[name]
    if not column.present:
        return "it has no values"
    if column.kind == "date":
        return "dates, of which one column can be the time (`time`)"
    if scan.first != 2:
        return f"{column.about}, not numbers"
    row, cell = scan.first_bad(name)
    if "%" in column.about:  # a format of dates
        place = scan.place(row).partition(" (")[0]
        return f"dates, but for {column.bad} of {column.present} cells ({place}: {_shown(cell)})"
    return f"text ({scan.place(row).partition(' (')[0]}: {_shown(cell)})"


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 30 else cell[:27] + "...")
