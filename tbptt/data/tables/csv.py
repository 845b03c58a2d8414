"""Open a CSV file as a table, converted once to an array on disk."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tbptt.data.tables.cache import open_converted
from tbptt.data.tables.csv_reader import check_header, raise_first_bad_cell
from tbptt.data.tables.file_changes import stamp_of
from tbptt.data.tables.table import Table, choose_columns, need_pyarrow

# Cells that denote a missing value; they become NaN, which is rejected or masked when read.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "-nan", "null", "NULL")
BLOCK = 1 << 20  # bytes of text parsed at once


def open_csv(path: Path, columns: Sequence[str] | None) -> Table:
    """Open a comma-separated file (UTF-8) whose first row names the columns.

    Empty cells, empty rows, NA and NaN are missing values. Empty rows at the end are ignored.
    The columns are converted to float64 once, block by block; see `open_converted`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is not such a table; the message gives the row and column.
        DataUnavailable: the cache folder is not writable.
    """
    need_pyarrow(path)
    stamp = stamp_of(path)
    names, data_start = _read_header(path)
    chosen, _ = choose_columns(path, names, columns)
    return open_converted(
        stamp,
        chosen,
        names,
        lambda: _blocks(path, names, chosen, data_start),
        lambda row: f"row {row + 2} (the header is row 1)",
    )


def _read_header(path: Path) -> tuple[tuple[str, ...], int]:
    """Return the column names, and the byte at which the rows begin."""
    with path.open("rb") as file:
        line = file.readline(BLOCK)
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, row 1 is not UTF-8 text: {error.reason}. Save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{path} holds zero bytes, so it is a binary file; expected comma-separated text"
        )
    cells = next(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True), None)
    return check_header(cells, path), len(line)


def _blocks(
    path: Path, names: tuple[str, ...], chosen: tuple[str, ...], data_start: int
) -> Iterator[np.ndarray]:
    """Yield the rows as float64 `[n, C]`, a few megabytes at a time."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    read = arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=names)
    parse = arrow_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(chosen, pa.float64()),
        include_columns=chosen,
        null_values=MISSING,
        quoted_strings_can_be_null=True,
        check_utf8=False,
    )
    end = _end_of_text(path)
    if end <= data_start:
        return
    try:
        with pa.OSFile(str(path)) as file:
            text = file.get_stream(data_start, end - data_start)
            for batch in arrow_csv.open_csv(text, read, parse, convert):
                yield np.stack(
                    [batch.column(i).to_numpy(zero_copy_only=False) for i in range(len(chosen))],
                    axis=1,
                )
    except pa.ArrowInvalid as error:
        raise_first_bad_cell(path, chosen, MISSING)
        raise ValueError(f"{path} is not a comma-separated table of numbers: {error}") from error
    finally:
        pa.default_memory_pool().release_unused()  # otherwise arrow keeps freed memory


def _end_of_text(path: Path) -> int:
    """Return the byte at which the last row ends, without empty lines at the end."""
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
