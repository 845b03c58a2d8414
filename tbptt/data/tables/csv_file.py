"""Open a CSV file in polars: what each column holds, by its first rows or by all of them."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tbptt.data.tables.csv_layout import (
    MISSING,
    SEPARATORS,
    Dialect,
    blocks_of,
    check_widths,
    dialect_of,
    explained,
    is_number,
)
from tbptt.data.tables.scan import ROW, Column, Scan

if TYPE_CHECKING:
    import polars as pl

# Tried in this order; the first one that reads every cell of a column is used.
DATES = tuple(
    date + time
    for date in ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y")
    for time in ("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f", "T%H:%M:%S%.f%#z",
                 " %H:%M:%S%.f%#z", " %I:%M %p", " %I:%M:%S %p")
)  # fmt: skip


class Way(NamedTuple):
    """A way to read a column: `value` is null at a cell that is not of the kind."""

    kind: str
    about: str
    value: "pl.Expr"


def scan_csv(path: Path, quick: bool) -> Scan:
    """Open a CSV file, plain or compressed, whose first row names the columns.

    Empty cells, empty rows and the cells of `MISSING` are missing values. Empty rows at the end
    are left out. A column is numbers if at least half of its cells are; the others are reported
    when the column is used.

    Args:
        quick: trust the first rows where all their cells agree. If a later cell is something else,
            reading the rows fails. `Scan.unsure` is true for rows that may be too short.

    Raises:
        ValueError: the file is not such a table; the message gives the row.
    """
    import polars as pl

    dialect = dialect_of(path)
    quick = quick and not dialect.trailing
    names = [*dialect.names, *([ROW + "end"] if dialect.trailing else [])]
    ways = {name: _ways(name, dialect) for name in dialect.names}
    cells = dialect.cells
    plain = [name for name in cells if cells[name] and all(map(is_number, cells[name]))]

    def options(texts: Collection[str]) -> dict[str, Any]:
        numbers = [name for name in plain if quick and name not in texts]
        schema = {name: pl.Float64 if name in numbers else pl.String for name in names}
        null = list(MISSING)
        return dict(schema=schema, has_header=False, separator=dialect.separator, null_values=null)

    def open_csv(texts: Collection[str]) -> "pl.LazyFrame":
        return pl.scan_csv(path, skip_rows=1, glob=False, **options(texts))

    def blocks(texts: Collection[str], picked: "list[pl.Expr]") -> "Iterator[pl.DataFrame]":
        used = dict.fromkeys(name for value in picked for name in value.meta.root_names())
        places = [names.index(name) for name in used]
        for i, data in enumerate(blocks_of(path)):
            if i == 0 and data.count(b"\n") == 1:  # the header alone: a row to old polars
                continue
            skip = {"skip_rows": int(i == 0), "raise_if_empty": False}
            yield pl.read_csv(data, columns=places, **skip, **options(texts)).select(picked)

    strings = open_csv(names)
    columns, rows, notes = {}, None, []
    for name in plain:
        columns[name] = Column("number", pl.col(name).cast(pl.Float64), _text(name), 0, 1)
    try:
        if quick:
            columns |= {name: column for name in ways if (column := _sure(name, ways, cells))}
        else:
            rows, empty, bad = _count_rows(strings, dialect, names, plain, path)
            columns = {name: columns[name] for name in plain if not bad[name]}
            notes += [f"{empty} empty rows at the end are left out"] if empty else []
        columns |= _examined(strings, {name: ways[name] for name in ways if name not in columns})
    except pl.exceptions.NoDataError as error:  # of old polars
        raise _no_rows(path) from error
    except pl.exceptions.PolarsError as error:
        raise explained(path, error, dialect) from error
    columns = {name: columns[name] for name in dialect.names}
    last = pl.col(names[-1]).is_null() if quick else None
    notes = [*_notes(dialect, columns), *notes]
    read_blocks = None if path.suffix.lower() == ".zst" else blocks
    return Scan(path, open_csv, rows, columns, dialect.unnamed, 2, notes, last, read_blocks)


def _count_rows(
    lazy: "pl.LazyFrame",
    dialect: Dialect,
    names: Sequence[str],
    plain: Sequence[str],
    path: Path,
) -> tuple[int, int, dict[str, int]]:
    """Return the rows, the empty ones at the end, and how many cells of `plain` are no numbers."""
    import polars as pl

    filled = pl.any_horizontal(_text(name).is_not_null() for name in names)
    number = {name: pl.col(name).cast(pl.Float64, strict=False) for name in plain}
    found = lazy.with_row_index(ROW).select(
        last=pl.when(filled).then(pl.col(ROW)).max(),
        all=pl.len(),
        short=(pl.col(names[-1]).is_null() & filled).sum(),
        **{f"bad {n}": (pl.col(n).is_not_null() & number[n].is_null()).sum() for n in plain},
    )
    counts = found.collect(engine="streaming").row(0, named=True)
    if counts["last"] is None:
        raise _no_rows(path)
    if counts["short"] and not dialect.trailing:
        check_widths(path, dialect)
    rows = counts["last"] + 1
    return rows, counts["all"] - rows, {name: counts[f"bad {name}"] for name in plain}


def _no_rows(path: Path) -> ValueError:
    return ValueError(
        f"{path} has a header and no rows; expected at least one row of numbers. Write it again"
    )


def _examined(lazy: "pl.LazyFrame", ways: dict[str, list[Way]]) -> dict[str, Column]:
    """Return what columns hold whose first cells do not tell, in one pass over the rows."""
    import polars as pl

    if not ways:
        return {}
    wanted = {f"present {name}": _text(name).count() for name in ways}
    for name, found in ways.items():
        for way in found:
            bad = _text(name).is_not_null() & way.value.is_null()
            wanted[f"bad {name} {way.about}"] = bad.sum()
    counts = lazy.select(**wanted).collect(engine="streaming").row(0, named=True)
    columns = {}
    for name, found in ways.items():
        present = counts[f"present {name}"]
        nothing = Way("text", "", pl.lit(None, pl.Float64))
        way = min(found, key=lambda way: counts[f"bad {name} {way.about}"], default=nothing)
        bad = counts.get(f"bad {name} {way.about}", present)
        kind = "text" if bad and (way.kind == "date" or 2 * bad > present) else way.kind
        columns[name] = Column(kind, way.value, _text(name), bad, present, way.about)
    return columns


def _sure(name: str, ways: dict[str, list[Way]], cells: dict[str, list[str]]) -> Column | None:
    """Return what a column holds by its first cells: dates or text; None if they do not tell."""
    import polars as pl

    found = cells[name]
    if found and not ways[name]:
        text = pl.lit(None, pl.Float64)
        return Column("text", text, _text(name), len(found), len(found))
    for way in ways[name] if found else ():
        if way.kind == "date" and _unread(found, way.about) == 0:
            value = _date(_text(name), way.about, strict=True)
            return Column("date", value, _text(name), 0, len(found), way.about)
    return None


def _ways(name: str, dialect: Dialect) -> list[Way]:
    """Return how a column may be read, by its first cells, best first."""
    import polars as pl

    text, cells = _text(name), dialect.cells[name]
    nothing = text.is_null()

    def number(about: str, value: "pl.Expr") -> Way:
        return Way("number", about, pl.when(nothing).then(float("nan")).otherwise(value))

    if cells and {cell.lower() for cell in cells} <= {"true", "false"}:
        words = {"true": 1.0, "false": 0.0}
        return [number("bool", text.str.to_lowercase().replace_strict(words, default=None))]
    commas = any(re.fullmatch(r"[+-]?\d*,\d+([eE][+-]?\d+)?", cell) for cell in cells)
    if not cells or commas or any(is_number(cell) for cell in cells):
        ways = [number("number", text.cast(pl.Float64, strict=False))]
        if dialect.separator != ",":
            whole = pl.when(~text.str.contains(".", literal=True)).then(text)
            point = whole.str.replace(",", ".", literal=True)
            ways.append(number("decimal comma", point.cast(pl.Float64, strict=False)))
        return ways
    formats = [format for format in DATES if 2 * _unread(cells, format) <= len(cells)]
    return [Way("date", format, _date(text, format, strict=False)) for format in formats]


def _unread(cells: Sequence[str], format: str) -> int:
    """Return the number of cells that are not dates of a format."""
    import polars as pl

    dates = pl.Series(cells, dtype=pl.String).str.to_datetime(format, strict=False, time_unit="us")
    return dates.null_count()


def _date(text: "pl.Expr", format: str, *, strict: bool) -> "pl.Expr":
    import polars as pl

    read = text.str.to_datetime(format, strict=strict, time_unit="us")
    return read.cast(pl.Datetime("us"))  # a time with an offset becomes UTC


def _text(name: str) -> "pl.Expr":
    import polars as pl

    cell = pl.col(name).str.strip_chars(' \t\r\n"')
    return pl.when(cell.is_in(list(MISSING))).then(None).otherwise(cell)


def _notes(dialect: Dialect, columns: dict[str, Column]) -> list[str]:
    notes = []
    if dialect.separator != ",":
        notes.append(f"the separator is {SEPARATORS[dialect.separator]}")
    if commas := [name for name, column in columns.items() if column.about == "decimal comma"]:
        notes.append(f"decimal comma in {', '.join(commas)}")
    for name, column in columns.items():
        if column.kind == "date" and not column.about.startswith("%Y"):
            notes.append(f"the dates of column {name!r} are read as {column.about}")
    if dialect.trailing:
        notes.append("rows end in a separator; the empty column after it is left out")
    return notes
