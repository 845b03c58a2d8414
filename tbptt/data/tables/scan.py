"""Open a CSV or Parquet file with polars, and decide by all rows what each column holds."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tbptt.data.tables import csv_dialect
from tbptt.data.tables.csv_dialect import SAMPLE, SEPARATORS, Dialect, check_widths, is_number

if TYPE_CHECKING:
    import polars as pl

# Cells that denote a missing value.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "-nan", "null", "NULL", "None", "#N/A")
NAN = float("nan")
# Tried in this order; the first one that reads every cell of a column is used.
DATES = tuple(
    date + time
    for date in ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y")
    for time in ("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f", "T%H:%M:%S%.f%#z",
                 " %H:%M:%S%.f%#z", " %I:%M %p", " %I:%M:%S %p")
)  # fmt: skip
ROW = "\0row"


class Column(NamedTuple):
    """What a column holds.

    kind:    "number", "date" or "text"
    value:   expression of its values: float64 with NaN for missing, dates in microseconds
    text:    expression of its values as text, null for missing
    bad:     number of cells that are neither missing nor of the kind
    present: number of cells that are not missing
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

    lazy:    the rows as the file holds them
    rows:    number of rows, without empty ones at the end
    columns: what each column holds, by name
    unnamed: name of an index column that pandas wrote without a name, or None
    first:   number of the first row in messages: 2 below a header, otherwise 0
    notes:   how the file was read
    """

    path: Path
    lazy: "pl.LazyFrame"
    rows: int
    columns: dict[str, Column]
    unnamed: str | None
    first: int
    notes: list[str]

    def place(self, row: int) -> str:
        """Return the position of a row for messages."""
        return place_of(self.first, row)

    def first_bad(self, name: str) -> tuple[int, str]:
        """Return the row of the first cell that is not of the column's kind, and the cell."""
        import polars as pl

        text, value = self.columns[name].text, self.columns[name].value
        bad = text.is_not_null() & value.is_null()
        found = self.lazy.with_row_index(ROW).filter(bad).select(pl.col(ROW), text.alias("cell"))
        return collect(found.head(1), self.path).row(0)


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


def collect(lazy: "pl.LazyFrame", path: Path) -> "pl.DataFrame":
    """Run a query through the streaming engine; name the file in its errors."""
    import polars as pl

    try:
        return lazy.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} is damaged: {_short(error)}. Copy or write it again") from error


def scan_parquet(path: Path) -> Scan:
    """Open a Parquet file.

    Raises:
        ValueError: the file is not a Parquet file, or was cut short.
    """
    import polars as pl

    try:
        lazy = pl.scan_parquet(path, glob=False)
        schema = lazy.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"cannot read {path} as a Parquet file: {_short(error)}. If it was cut short, copy it "
            "again"
        ) from error
    counts = collect(lazy.select(pl.len().alias(ROW), pl.all().count()), path).row(0, named=True)
    columns = {}
    for name, dtype in schema.items():
        column, text = pl.col(name), pl.col(name).cast(pl.String, strict=False)
        kind, value = "text", pl.lit(None, pl.Float64)
        if dtype.is_numeric() or dtype == pl.Boolean:
            kind, value = "number", column.cast(pl.Float64).fill_null(NAN)
        elif dtype in (pl.Date, pl.Datetime):
            kind, value = "date", column.cast(pl.Datetime("us"))
        bad = counts[name] if kind == "text" else 0
        columns[name] = Column(kind, value, text, bad, counts[name], str(dtype))
    return Scan(path, lazy, counts[ROW], columns, None, 0, [])


def scan_csv(path: Path) -> Scan:
    """Open a CSV file, plain or compressed, whose first row names the columns.

    Empty cells, empty rows and the cells of `MISSING` are missing values. Empty rows at the end
    are left out. A column is numbers if at least half of its cells are; the others are reported
    when the column is used.

    Raises:
        ValueError: the file is not such a table; the message gives the row.
    """
    import polars as pl

    lines = _first_lines(path)
    dialect = csv_dialect.dialect_of(lines, path)
    names = [*dialect.names, *([ROW + "end"] if dialect.trailing else [])]
    options: Any = {"separator": dialect.separator, "infer_schema": False, "glob": False}
    below = {"has_header": False, "skip_rows": 1} if dialect.trailing == "rows" else {}
    filled = pl.any_horizontal(
        *(pl.col(n).is_not_null() for n in names[1:]), _text(names[0]).is_not_null()
    )
    plain = {name: pl.col(name).cast(pl.Float64, strict=False) for name in dialect.names}
    try:
        lazy = pl.scan_csv(path, new_columns=names, **options, **below)
        counts = _counts(
            lazy.with_row_index(ROW),
            last=pl.when(filled).then(pl.col(ROW)).max(),
            all=pl.len(),
            short=(pl.col(names[-1]).is_null() & filled).sum(),
            **{f"bad {n}": (pl.col(n).is_not_null() & plain[n].is_null()).sum() for n in plain},
            **{f"present {n}": pl.col(n).count() for n in plain},
        )
        if counts["last"] is None:
            raise ValueError(
                f"{path} has a header and no rows; expected at least one row of numbers"
            )
        columns = {}
        for place, name in enumerate(dialect.names):
            value, text = plain[name].fill_null(NAN), _text(name)
            columns[name] = Column("number", value, text, 0, counts[f"present {name}"])
            if counts[f"bad {name}"]:
                columns[name] = _examined(lazy, dialect, place)
    except pl.exceptions.PolarsError as error:
        if "utf-8" in str(error):
            csv_dialect.raise_not_utf8(path)
        check_widths(path, dialect)
        raise ValueError(f"{path} is not a CSV table: {_short(error)}") from error
    if counts["short"] and not dialect.trailing:
        check_widths(path, dialect)
    notes = _notes(dialect, columns)
    if empty := counts["all"] - counts["last"] - 1:
        notes.append(f"{empty} empty rows at the end are left out")
    return Scan(path, lazy, counts["last"] + 1, columns, dialect.unnamed, 2, notes)


def _counts(lazy: "pl.LazyFrame", **what: "pl.Expr") -> dict[str, Any]:
    """Return the values of expressions that have one value each, in one pass over the rows."""
    return lazy.select(**what).collect(engine="streaming").row(0, named=True)


def _examined(lazy: "pl.LazyFrame", dialect: Dialect, place: int) -> Column:
    """Return what a column holds whose cells are not all plain numbers, in a pass of its own."""
    import polars as pl

    name = dialect.names[place]
    text, tried = _text(name), _candidates(dialect, place)
    counts = _counts(
        lazy,
        present=text.is_not_null().sum(),
        **{how: (text.is_not_null() & value.is_null()).sum() for how, (_, value) in tried.items()},
    )
    how = min(tried, key=lambda how: counts[how], default="")
    if not how:
        return Column("text", pl.lit(None, pl.Float64), text, counts["present"], counts["present"])
    kind, value = tried[how]
    if counts[how] and (kind == "date" or 2 * counts[how] > counts["present"]):
        kind = "text"
    return Column(kind, value, text, counts[how], counts["present"], how)


def _first_lines(path: Path) -> list[str]:
    """Return the first lines of a CSV file, decompressed."""
    import polars as pl

    try:
        lines = pl.read_csv(
            path,
            has_header=False,
            separator="\x1f",  # a character that does not occur: a line is one cell
            quote_char=None,
            infer_schema=False,
            n_rows=SAMPLE + 1,
            glob=False,
            truncate_ragged_lines=True,
        )
    except pl.exceptions.NoDataError as error:
        if path.suffix == ".csv" and path.stat().st_size:  # blank lines; of old polars
            return [""]
        raise ValueError(
            f"{path} is empty; expected a row of column names and at least one row of numbers"
        ) from error
    except pl.exceptions.PolarsError as error:
        if "utf-8" in str(error):
            csv_dialect.raise_not_utf8(path)
        raise ValueError(f"{path} is not a CSV table: {_short(error)}") from error
    first, *rest = (line or "" for line in lines.to_series())
    return [first.removeprefix("\ufeff"), *rest]


def _text(name: str) -> "pl.Expr":
    import polars as pl

    cell = pl.col(name).str.strip_chars(' \t\r\n"')
    return pl.when(cell.is_in(list(MISSING))).then(None).otherwise(cell)


def _candidates(dialect: Dialect, place: int) -> dict[str, tuple[str, "pl.Expr"]]:
    """Return what a column may hold by its first cells: {how: (kind, expression)}, best first.

    The expression is null at a cell that is not of the kind.
    """
    import polars as pl

    name, text = dialect.names[place], _text(dialect.names[place])
    cells = [row[place] for row in dialect.cells if place < len(row)]
    cells = [cell for cell in cells if cell not in MISSING]
    missing, nothing = pl.lit(NAN), text.is_null()
    found: dict[str, tuple[str, pl.Expr]] = {}

    def number(how: str, value: "pl.Expr") -> None:
        found[how] = "number", pl.when(nothing).then(missing).otherwise(value)

    if cells and {cell.lower() for cell in cells} <= {"true", "false"}:
        lower = text.str.to_lowercase()
        number("bool", lower.replace_strict({"true": 1.0, "false": 0.0}, default=None))
        return found
    commas = any(re.fullmatch(r"[+-]?\d*,\d+([eE][+-]?\d+)?", cell) for cell in cells)
    if not cells or commas or any(is_number(cell) for cell in cells):
        number("number", text.cast(pl.Float64, strict=False))
        if dialect.separator != ",":
            whole = pl.when(~text.str.contains(".", literal=True)).then(text)
            point = whole.str.replace(",", ".", literal=True)
            number("decimal comma", point.cast(pl.Float64, strict=False))
        return found
    sample = pl.Series(name, cells, pl.String)
    for format in DATES:
        unread = sample.str.to_datetime(format, strict=False, time_unit="us").null_count()
        if 2 * unread <= len(cells):
            found[format] = "date", _date(text, format)
    return found


def _date(text: "pl.Expr", format: str) -> "pl.Expr":
    import polars as pl

    read = text.str.to_datetime(format, strict=False, time_unit="us")
    return read.cast(pl.Datetime("us"))  # a time with an offset becomes UTC


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


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
