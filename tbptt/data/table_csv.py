"""A CSV file as a table: text has no random access, so it is converted once, streaming, into an array on disk."""

import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tbptt.data.csv_table import find_bad_cell, header
from tbptt.data.fetch import DataUnavailable, cache_dir
from tbptt.data.table import Table, choose_columns, need_pyarrow
from tbptt.data.table_npy import open_npy
from tbptt.data.watched import SourceChanged, Watched, watch

# What stands for a missing value: it becomes NaN, and NaN is refused, or masked, when the row is read.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "-nan", "null", "NULL")
BLOCK = 1 << 22  # bytes of text parsed at once
FORMAT = "1"  # of the converted file: another number, another conversion


def open_csv(path: Path, columns: Sequence[str] | None) -> Table:
    """Opens a comma-separated file whose first row names the columns (UTF-8).

    The columns are converted to float64 once, block by block, into the cache folder ($TBPTT_DATA, else
    $XDG_CACHE_HOME/tbptt, else ~/.cache/tbptt; there tables/), under a name made of the file's path, size, time of change,
    header and the columns; later runs find it there. It is moved into place in one atomic step when it is whole. The cache
    may be deleted at any time when no run reads from it.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is no such table; names the row and column.
        DataUnavailable: the cache folder cannot be written.
    """
    need_pyarrow(path)
    watched = watch(path)
    names, data_start = _read_header(path)
    chosen, _ = choose_columns(path, names, columns)
    target = _cache_file(watched, names, chosen)
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _convert(watched, names, chosen, data_start, target)
        except OSError as error:
            if isinstance(error, SourceChanged) or error.filename == str(path):
                raise
            raise DataUnavailable(
                f"{path} could not be converted into {target.parent}: {error}. Make room, or set TBPTT_DATA to a folder "
                "that can be written"
            ) from error
    array = open_npy(target, None)

    def read(start: int, stop: int) -> np.ndarray:
        values = array.read(start, stop)
        array.file.check()
        return values

    return Table(watched, chosen, array.length, read, lambda row: f"row {row + 2} (the header is row 1)")


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


def _cache_file(watched: Watched, names: tuple[str, ...], chosen: tuple[str, ...]) -> Path:
    def digest(*parts: object) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    which = digest(FORMAT, str(watched.path.absolute()), chosen)
    return cache_dir() / "tables" / f"{which}-{digest(watched.size, watched.modified, names)}.npy"


def _convert(watched: Watched, names: tuple[str, ...], chosen: tuple[str, ...], data_start: int, target: Path) -> None:
    """Writes the converted table; only a whole one ever bears the target's name."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as folder:
        fresh = Path(folder) / "table.npy"
        with fresh.open("wb") as out:
            T = 0
            _write_head(out, (0, len(chosen)))
            size = out.tell()
            for block in _blocks(watched, names, chosen, data_start):
                block.tofile(out)
                T += len(block)
            out.seek(0)
            _write_head(out, (T, len(chosen)))
            if out.tell() != size:
                raise AssertionError("numpy's header grew into the data")
            out.flush()
            os.fsync(out.fileno())
        if T == 0:
            raise ValueError(f"{watched.path} has a header and no rows; wanted at least one row of numbers")
        watched.check()
        for old in target.parent.glob(f"{target.name.partition('-')[0]}-*.npy"):  # of the same file, as it was before
            old.unlink(missing_ok=True)
        os.replace(fresh, target)


def _write_head(out: io.BufferedIOBase, shape: tuple[int, int]) -> None:
    """Writes a .npy header; numpy leaves room in it for the first axis to grow."""
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})


def _blocks(watched: Watched, names: tuple[str, ...], chosen: tuple[str, ...], data_start: int):
    """Yields the rows as float64 `[n, C]`, a few megabytes at a time."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    path = watched.path
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
