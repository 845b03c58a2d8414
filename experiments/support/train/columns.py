"""Choose the columns that a run reads from tables that may contain non-numeric columns."""

import csv
from pathlib import Path
from typing import Any

from experiments.support.common.console import console
from tbptt.data import open_source

MISSING = ("", "na", "n/a", "nan", "null")


def chosen_columns(config: Any) -> tuple[str, ...]:
    """Return the input columns: --columns, or all numeric columns except --group and the class.

    The target of a forecast is always an input.

    Raises:
        ValueError: a named column does not exist or cannot be an input, or there is no input.
    """
    names, text = columns_of(config.data[0])
    if config.target is None:
        raise ValueError(f"--target is required: the column to predict, one of {', '.join(names)}")
    if missing := [
        name
        for name in (config.target, config.group, *config.columns)
        if name and name not in names
    ]:
        raise ValueError(
            f"{config.data[0]} has no column {missing[0]!r}; its columns are {', '.join(names)}"
        )
    if config.group == config.target:
        raise ValueError(
            f"--group and --target must be different columns; got {config.target!r} for both"
        )
    left_out = {config.group} | ({config.target} if config.task == "classify" else set())
    if set(config.columns) & left_out:
        raise ValueError(
            f"--columns must not contain --group or the class, which are not inputs; got "
            f"{', '.join(config.columns)}"
        )
    if bad := [name for name in (config.target, config.group, *config.columns) if name in text]:
        raise ValueError(
            f"{config.data[0]}: column {bad[0]!r} contains text, and only numbers can be read; "
            f"replace its values by "
            "numbers 0, 1, ..."
        )
    chosen = tuple(config.columns) or tuple(
        name for name in names if name not in left_out and name not in text
    )
    if text and not config.columns:
        console.print(
            f"Ignoring non-numeric columns: {', '.join(sorted(text))}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if config.task == "forecast" and config.target not in chosen:
        chosen += (config.target,)  # the past of the target is known, too
    if not chosen:
        raise ValueError(
            f"{config.data[0]} has no numeric input column besides --group and --target; its "
            f"columns are {', '.join(names)}"
        )
    return chosen


def columns_of(path: Path) -> tuple[tuple[str, ...], set[str]]:
    """Return the columns of a table, and which of them are not numeric, judged by the first row."""
    if path.suffix.lower() == ".csv" and path.is_file():
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file, skipinitialspace=True)
            header, row = ([cell.strip() for cell in next(rows, [])] for _ in range(2))
        if header and len(header) == len(row) and any(_is_number(cell) for cell in row):
            return tuple(header), {
                name for name, cell in zip(header, row, strict=True) if not _is_number(cell)
            }
    if path.suffix.lower() == ".parquet" and path.is_file():
        import pyarrow.parquet as parquet
        import pyarrow.types as types

        schema = parquet.read_schema(path)
        numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
        text = {field.name for field in schema if not any(fits(field.type) for fits in numbers)}
        return tuple(schema.names), text
    return open_source(path).names, set()  # raises the error if the file is not a table


def _is_number(cell: str) -> bool:
    if cell.strip().lower() in MISSING:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
