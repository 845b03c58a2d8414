"""Choose which columns of a table are its numbers, its time, its groups and its label."""

from typing import NamedTuple

from tbptt.data.tables.scan import DATES, Scan


class Reading(NamedTuple):
    """How a table is read; the arguments of `open_source`."""

    columns: tuple[str, ...] | None = None
    time: str | None = None
    group: tuple[str, ...] = ()
    label: str | None = None
    missing: str = "refuse"
    gaps: str = "keep"
    sort: bool = False


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
    numbers: the ones named; else all columns of numbers that have no other use

    Raises:
        ValueError: a named column does not exist or does not hold what it is used for; no column
            holds numbers; a column of numbers holds a cell that is none. The message gives the
            row.
    """
    columns, path = scan.columns, scan.path
    named = (*(reading.columns or ()), reading.time, *reading.group, reading.label)
    if missing := [name for name in named if name is not None and name not in columns]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; its columns are {', '.join(columns)}"
        )
    dates = [name for name in columns if columns[name].kind == "date" and name not in named]
    time = reading.time or (dates[0] if len(dates) == 1 else None)
    if time is not None and columns[time].kind == "text":
        row, cell = scan.first_bad(time)
        raise ValueError(
            f"{path}, {scan.place(row)}, column {time!r} is neither a number nor a date: {cell!r}. "
            "Write dates as 2024-01-31 or 2024-01-31 12:30:00"
        )
    used = {time, *reading.group, reading.label} - {None}
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
        if not chosen and reading.label is None:
            raise ValueError(
                f"{path} has no column of numbers besides the time and the groups: "
                f"{'; '.join(f'{name} is {why}' for name, why in left_out.items())}. Write its "
                "numbers as 1.5, or as 1,5 in a file with ';' between the columns"
            )
    for name in chosen:
        _check_numbers(scan, name)
    return Roles(chosen, time, reading.group, reading.label, left_out, _format_of(scan, time))


def _format_of(scan: Scan, time: str | None) -> str:
    about = "" if time is None else scan.columns[time].about
    return {"Date": "%Y-%m-%d"}.get(about, about.replace("%#z", "Z") if about in DATES else "")


def _check_numbers(scan: Scan, name: str) -> None:
    column = scan.columns[name]
    if column.kind == "number" and not column.bad:
        return
    if column.kind == "date" or scan.first != 2:
        kind = "dates" if column.kind == "date" else column.about
        remedy = ", or name it as the time (`time`)" if column.kind == "date" else ", or convert it"
        raise ValueError(
            f"{scan.path}, column {name!r} holds {kind}, not numbers. Exclude it by naming the "
            f"others in `columns`{remedy}"
        )
    row, cell = scan.first_bad(name)
    raise ValueError(
        f"{scan.path}, row {row + scan.first}, column {name!r} is not a number: {cell!r}, one of "
        f"{column.bad} such cells of {column.present}. Correct the file, or exclude the column by "
        "naming the others in `columns`"
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
    if column.about in DATES:
        place = scan.place(row).partition(" (")[0]
        return f"dates, but for {column.bad} of {column.present} cells ({place}: {_shown(cell)})"
    return f"text ({scan.place(row).partition(' (')[0]}: {_shown(cell)})"


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 30 else cell[:27] + "...")
