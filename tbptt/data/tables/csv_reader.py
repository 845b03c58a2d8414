"""Read a comma-separated table of numbers in plain Python, with errors that give the position."""

import array
import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from jaxtyping import Float64


def read_csv(
    path: Path, columns: Sequence[str] | None
) -> tuple[Float64[np.ndarray, "T C"], tuple[str, ...]]:
    """Read the named columns of a .csv file, or all of them.

    The first row names the columns. Blanks around names and numbers, a byte order mark at the
    start and empty lines at the end are ignored. Every row must have as many cells as the
    header, and every cell of the chosen columns must be a finite number. The other columns may
    hold anything.

    Args:
        path: the file, UTF-8.
        columns: the names of the columns to read, in this order; None reads all.

    Returns:
        (values, names).

    Raises:
        ValueError: the file is not such a table; the message gives the file, the row (the
            header is row 1) and the column.
    """
    numbers, row = array.array("d"), 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(_text_lines(file, path), skipinitialspace=True, strict=True)
            names = check_header(next(rows, None), path)
            chosen = names if columns is None else tuple(columns)
            if missing := [name for name in chosen if name not in names]:
                raise ValueError(
                    f"{path} has no column {missing[0]!r}; its columns are {', '.join(names)}"
                )
            places = [(names.index(name), name) for name in chosen]
            row, blank_row = 1, None
            for row, cells in enumerate(rows, start=2):
                if not cells:
                    blank_row = blank_row or row
                    continue
                if blank_row:
                    raise ValueError(
                        f"{path}, row {blank_row} is empty, and rows follow it. Remove or complete "
                        "it"
                    )
                if len(cells) != len(names):
                    raise ValueError(
                        f"{path}, row {row} has {len(cells)} cells; the header has {len(names)} "
                        "columns. Correct or remove the row"
                    )
                if row == 2:
                    _check_any_number(path, cells, names, places)
                for place, name in places:
                    numbers.append(_number(cells[place], path, row, name))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} (byte 0x{error.object[error.start]:02x}, "
            f"after row {row}). Save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise ValueError(
            f"{path}, after row {row}, is not a comma-separated table: {error}"
        ) from error
    if not numbers:
        raise ValueError(f"{path} has a header and no rows; expected at least one row of numbers")
    return np.array(numbers, np.float64).reshape(-1, len(places)), chosen


def raise_first_bad_cell(path: Path, columns: Sequence[str], missing: Sequence[str]) -> None:
    """Raise a ValueError for the first row of a wrong width or the first non-numeric cell.

    For files that another reader has rejected and that may be larger than memory: it holds one
    row at a time.

    Args:
        missing: cells that denote a missing value, which are not errors here.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(_text_lines(file, path), skipinitialspace=True)
        names = check_header(next(rows, None), path)
        places = [(names.index(name), name) for name in columns]
        for row, cells in enumerate(rows, start=2):
            if cells and len(cells) != len(names):
                last = ""
                if not any(rows):
                    last = " and is the last one: the file ends in the middle of it"
                raise ValueError(
                    f"{path}, row {row} has {len(cells)} cells{last}; the header has {len(names)} "
                    "columns. Correct or remove the row"
                )
            for place, name in places if cells else ():
                if cells[place].strip() not in missing and _parse(cells[place]) is None:
                    _number(cells[place], path, row, name)


def _text_lines(file: TextIO, path: Path) -> Iterator[str]:
    for line in file:
        if "\0" in line:
            raise ValueError(
                f"{path} holds zero bytes, so it is a binary file; expected comma-separated text"
            )
        yield line


def check_header(cells: list[str] | None, path: Path) -> tuple[str, ...]:
    """Validate the first row and return the column names."""
    if cells is None:
        raise ValueError(
            f"{path} is empty; expected a row of column names and at least one row of numbers"
        )
    names = tuple(cell.strip() for cell in cells)
    if not names or "" in names:
        raise ValueError(f"{path}, row 1 must give every column a name; got {names}")
    if all(_parse(name) is not None for name in names):
        raise ValueError(
            f"{path}, row 1 must be a header, the names of the columns; got the numbers "
            f"{', '.join(names)}. Add a row of names above them"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}, row 1 names more than one column {twice[0]!r}. Rename one")
    return names


def _check_any_number(
    path: Path, cells: list[str], names: tuple[str, ...], places: list[tuple[int, str]]
) -> None:
    """Raise an error at row 2 if no chosen column is numeric, or the delimiter is not a comma."""
    if any(_parse(cells[place]) is not None for place, _ in places):
        return
    delimiter = next((mark for mark in (";", "\t") if mark in names[0]), None)
    hint = "Choose other columns with `columns`"
    if delimiter:
        hint = f"The delimiter must be a comma; it seems to be {delimiter!r}"
    raise ValueError(
        f"{path} has no numeric column among {', '.join(name for _, name in places)}: row 2 is "
        f"{cells}. {hint}"
    )


def _number(cell: str, path: Path, row: int, column: str) -> float:
    number = _parse(cell)
    if number is None:
        what = f"is not a number: {cell!r}" if cell.strip() else "is empty"
        remedy = "Correct it, or exclude the column by naming the others in `columns`"
        raise ValueError(f"{path}, row {row}, column {column!r} {what}. {remedy}")
    if not math.isfinite(number):
        raise ValueError(
            f"{path}, row {row}, column {column!r} is {cell.strip()}, not a finite number. Fill it "
            "in or remove it first"
        )
    return number


def _parse(cell: str) -> float | None:
    """Return the number in a cell, or None; "1_000" is valid only in Python, so None."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
