"""Read recordings by rows from .npy, .csv and .parquet files that may be larger than memory."""

import bisect
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Num

from tbptt.data.tables.bad_samples import check_rows
from tbptt.data.tables.csv import open_csv
from tbptt.data.tables.npy import open_npy
from tbptt.data.tables.parquet import open_parquet
from tbptt.data.tables.table import Table, check_file

OPENERS = {".npy": open_npy, ".csv": open_csv, ".parquet": open_parquet}


@runtime_checkable
class Source(Protocol):
    """Recordings one after another, as rows that are read on demand."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the C columns."""
        ...

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of rows of each recording; row numbers run through all recordings."""
        ...

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Read rows [start, stop) into a new array; raise an exception that gives the bad row."""
        ...

    def path_of(self, row: int) -> str:
        """Return the file of a row and its position there."""
        ...


class Files:
    """A `Source` of tables, one recording per file. Made by `open_source`.

    names, lengths: as in `Source`
    dtype:          dtype of the result of `read`
    """

    def __init__(self, tables: Sequence[Table], dtype: Any = np.float32):
        self.names = tables[0].names
        self.lengths = tuple(table.length for table in tables)
        self.dtype = np.dtype(dtype)
        self._tables = tuple(tables)
        self._edges = [0, *np.cumsum(self.lengths).tolist()]

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Read rows [start, stop) of all columns.

        Raises:
            IndexError: there are no such rows.
            BadSample: a value is missing, NaN, infinite, or too large for the dtype.
            SourceChanged: a file was removed or changed after it was opened.
        """
        values = self.read_unchecked(start, stop)
        check_rows(self, start, values)
        return values

    def read_unchecked(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Read rows as the files hold them, with NaN for missing values, and possibly inf."""
        if not 0 <= start <= stop <= self._edges[-1]:
            raise IndexError(
                f"rows [{start}, {stop}) are not among the {self._edges[-1]} rows of the source"
            )
        parts, at = [np.empty((0, len(self.names)), self.dtype)], start
        while at < stop:
            i = bisect.bisect_right(self._edges, at) - 1
            upto = min(stop, self._edges[i + 1])
            parts.append(
                self._read_table(self._tables[i], at - self._edges[i], upto - self._edges[i])
            )
            at = upto
        return parts[-1] if len(parts) == 2 else np.concatenate(parts)

    def path_of(self, row: int) -> str:
        """Return the file of a row and its position there."""
        i = min(bisect.bisect_right(self._edges, row), len(self._tables)) - 1
        return f"{self._tables[i].file.path}, {self._tables[i].place(row - self._edges[i])}"

    def _read_table(self, table: Table, start: int, stop: int) -> np.ndarray:
        try:
            values = table.read(start, stop)
        finally:
            table.file.check()  # after the read, to detect changes before and during it
        with np.errstate(over="ignore"):  # overflow gives inf, which is rejected with its position
            return values.astype(self.dtype, copy=False)


def open_source(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    columns: Sequence[str] | None = None,
    *,
    dtype: Any = np.float32,
) -> Files:
    """Open one or several files as recordings, without loading them into memory.

        .npy      an array `[T]` or `[T, C]`, read by position; columns "0", "1", ...
        .csv      comma-separated, the first row names the columns
        .parquet  numeric columns

    The last two lack (cheap) random access. They are converted once, in blocks, to a file in the
    cache folder, as large as the columns are in memory; see `open_converted`.

    Values are checked when they are read. A missing, NaN or infinite value raises a `BadSample`
    with its file, row and column; a file that is gone or changed raises a `SourceChanged`. Use
    `masking_bad` to mask bad rows instead.

    Args:
        paths: the file or files, in order, for example `sorted(folder.glob(...))`.
        columns: which columns to read, in this order; None reads all, and then all files must
            have the same names.
        dtype: dtype of the result of `read`. Use float64 for columns that float32 would
            coarsen, such as times since 1970, and scale them (`standardised`) before training.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ImportError: a .csv or .parquet file, and pyarrow is not installed.
        TypeError: `columns` is one string.
        ValueError: no path; an unknown suffix; content that does not match the suffix; columns
            that differ between files.
        DataUnavailable: the cache folder for a .csv or .parquet file is not writable.
    """
    files = (
        [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    )
    if not files:
        raise ValueError(
            "paths must name at least one file; got none. Check that the pattern matches a file"
        )
    if isinstance(columns, str):  # a string is a sequence of strings, its letters
        raise TypeError(
            f"columns must be a sequence of names; got the string {columns!r}. Write ({columns!r},)"
        )
    if columns is not None and (len(columns) == 0 or len(set(columns)) < len(columns)):
        raise ValueError(
            f"columns must name at least one column, and none twice; got {tuple(columns)}"
        )
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64; got {np.dtype(dtype)}")
    tables = [_open(path, columns) for path in files]
    for table in tables:
        if table.names != tables[0].names:
            raise ValueError(
                f"{table.file.path} has the columns {', '.join(table.names)}; {files[0]} has "
                f"{', '.join(tables[0].names)}. Name the ones to read, in order, in `columns`"
            )
    return Files(tables, dtype)


def _open(path: Path, columns: Sequence[str] | None) -> Table:
    suffix = path.suffix.lower()
    if suffix not in OPENERS:
        raise ValueError(
            f"paths must end in one of {', '.join(OPENERS)}; got {path.suffix!r} in {path}. "
            "Convert it first, or read text with open_text"
        )
    check_file(path, "open_source takes the files")
    return OPENERS[suffix](path, columns)
