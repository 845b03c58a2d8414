"""A CSV file as a table: text has no random access, so it is converted once, streaming, into an array on disk."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tbptt.data.tables.cache import converted
from tbptt.data.tables.csv_header import find_bad_cell, header
from tbptt.data.tables.file_changes import watch
from tbptt.data.tables.table import Table, choose_columns, need_pyarrow

# What stands for a missing value: it becomes NaN, and NaN is refused, or masked, when the row is read.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "-nan", "null", "NULL")
BLOCK = 1 << 20  # bytes of text parsed at once


def open_csv(path: Path, columns: Sequence[str] | None) -> Table:
    """Opens a comma-separated file whose first row names the columns (UTF-8).

    Empty cells and empty rows are missing values, as NA and NaN are; empty rows at the end are none.

    The columns are converted to float64 once, block by block, see `converted`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is no such table; names the row and column.
        DataUnavailable: the cache folder cannot be written.
    """
    need_pyarrow(path)
    watched = watch(path)
    names, data_start = _read_header(path)
    chosen, _ = choose_columns(path, names, columns)
    return converted(
        watched,
        chosen,
        names,
        lambda: _blocks(path, names, chosen, data_start),
        lambda row: f"row {row + 2} (the header is row 1)",
    )


def _read_header(path: Path) -> tuple[tuple[str, ...], int]:
    """Returns the columns' names, and the byte at which the rows begin."""
    with path.open("rb") as file:
        line = file.readline(BLOCK)
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, row 1 is not UTF-8 text: {error.reason}. Save the file as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} holds zero bytes, so it is no text but a binary file; wanted comma-separated text")
    cells = next(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True), None)
    return header(cells, path), len(line)


def _blocks(path: Path, names: tuple[str, ...], chosen: tuple[str, ...], data_start: int) -> Iterator[np.ndarray]:
    """Yields the rows as float64 `[n, C]`, a few megabytes at a time."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    read = arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=names)
    parse = arrow_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(chosen, pa.float64()), include_columns=chosen, null_values=MISSING,
        quoted_strings_can_be_null=True, check_utf8=False,
    )  # fmt: skip
    end = _end_of_text(path)
    if end <= data_start:
        return
    try:
        with pa.OSFile(str(path)) as file:
            text = file.get_stream(data_start, end - data_start)
            for batch in arrow_csv.open_csv(text, read, parse, convert):
                yield np.stack([batch.column(i).to_numpy(zero_copy_only=False) for i in range(len(chosen))], axis=1)
    except pa.ArrowInvalid as error:
        find_bad_cell(path, chosen, MISSING)
        raise ValueError(f"{path} is not a comma-separated table of numbers: {error}") from error
    finally:
        pa.default_memory_pool().release_unused()  # arrow keeps what it has freed; nothing of it is needed again


def _end_of_text(path: Path) -> int:
    """Returns where the last row ends: empty lines at the end are no rows."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            kept = len(file.read(end - start).rstrip(b"\r\n \t"))
            if kept:
                return start + kept
            end = start
    return 0
