"""Recordings on disk that are read by rows, never whole: .npy, .csv and .parquet files, one after another."""

import bisect
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Num

from tbptt.data.tables.bad_samples import refuse_bad
from tbptt.data.tables.csv import open_csv
from tbptt.data.tables.files import check_file
from tbptt.data.tables.npy import open_npy
from tbptt.data.tables.parquet import open_parquet
from tbptt.data.tables.table import Table

OPENERS = {".npy": open_npy, ".csv": open_csv, ".parquet": open_parquet}


@runtime_checkable
class Source(Protocol):
    """Recordings one after another, as rows that are read when asked for."""

    @property
    def names(self) -> tuple[str, ...]:
        """The C columns' names."""
        ...

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each recording; the rows of all are numbered through."""
        ...

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Reads rows [start, stop), a fresh array; an exception names what is wrong with them, and where."""
        ...

    def path_of(self, row: int) -> str:
        """Says which file a row is from, and where in it."""
        ...


class Files:
    """A `Source` of tables: each file a recording. Made by `open_source`.

    names, lengths: as in `Source`
    dtype:          what `read` returns
    """

    def __init__(self, tables: Sequence[Table], dtype: Any = np.float32):
        self.names = tables[0].names
        self.lengths = tuple(table.length for table in tables)
        self.dtype = np.dtype(dtype)
        self._tables = tuple(tables)
        self._edges = [0, *np.cumsum(self.lengths).tolist()]

    def read(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Reads rows [start, stop) of all columns.

        Raises:
            IndexError: there are no such rows.
            BadSample: a value is missing, NaN, infinite, or too large for the dtype.
            SourceChanged: a file is gone, or is not what it was when it was opened.
        """
        values = self.read_unchecked(start, stop)
        refuse_bad(self, start, values)
        return values

    def read_unchecked(self, start: int, stop: int) -> Num[np.ndarray, "n C"]:
        """Reads rows that may hold NaN and inf, as the files do: what is missing is NaN."""
        if not 0 <= start <= stop <= self._edges[-1]:
            raise IndexError(f"rows [{start}, {stop}) are not among the {self._edges[-1]} rows of the source")
        parts, at = [np.empty((0, len(self.names)), self.dtype)], start
        while at < stop:
            i = bisect.bisect_right(self._edges, at) - 1
            upto = min(stop, self._edges[i + 1])
            parts.append(self._read_table(self._tables[i], at - self._edges[i], upto - self._edges[i]))
            at = upto
        return parts[-1] if len(parts) == 2 else np.concatenate(parts)

    def path_of(self, row: int) -> str:
        """Says which file a row is from, and where in it."""
        i = min(bisect.bisect_right(self._edges, row), len(self._tables)) - 1
        return f"{self._tables[i].file.path}, {self._tables[i].place(row - self._edges[i])}"

    def _read_table(self, table: Table, start: int, stop: int) -> np.ndarray:
        try:
            values = table.read(start, stop)
        finally:
            table.file.check()  # after the read, so that a change before or during it is seen, and named as the cause
        with np.errstate(over="ignore"):  # becomes inf, which is refused with its place
            return values.astype(self.dtype, copy=False)


def open_source(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    columns: Sequence[str] | None = None,
    *,
    dtype: Any = np.float32,
) -> Files:
    """Opens one file, or several, as recordings one after another; of no file more than a few blocks is ever in memory.

        .npy      an array `[T]` or `[T, C]`, read by position; the columns' names are "0", "1", ...
        .csv      comma-separated, the first row names the columns
        .parquet  numeric columns

    The last two have no (cheap) random access: they are converted once, streaming, into a file of the cache folder, as
    large as the columns are in memory; see `converted`.

    What a file holds is looked at when it is read: a value that is missing, NaN or infinite is a `BadSample` with its
    file, row and column, a file that is gone or changed a `SourceChanged`. See `masking_bad` for a milder policy.

    Args:
        paths: the file or files, in order; folders and patterns are the caller's business (`sorted(folder.glob(...))`).
        columns: which columns to read, in this order; None reads all, which must then be named alike in all files.
        dtype: what `read` returns. float64 for columns that float32 would coarsen, such as times since 1970; scale them
            (`standardised`) before they are trained on.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ImportError: a .csv or .parquet file, and pyarrow is not installed.
        TypeError: `columns` is one string.
        ValueError: no path; a suffix that is not known; a file that is not what its suffix says; columns that differ.
        DataUnavailable: the cache folder for a .csv or .parquet file cannot be written.
    """
    files = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    if not files:
        raise ValueError("paths must name at least one file; got none. Does the pattern match any?")
    if isinstance(columns, str):  # a string is a sequence of strings too: its letters
        raise TypeError(f"columns must be a sequence of names; got the string {columns!r}. Write ({columns!r},)")
    if columns is not None and (len(columns) == 0 or len(set(columns)) < len(columns)):
        raise ValueError(f"columns must name at least one column, and none twice; got {tuple(columns)}")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64; got {np.dtype(dtype)}")
    tables = [_open(path, columns) for path in files]
    for table in tables:
        if table.names != tables[0].names:
            raise ValueError(
                f"{table.file.path} has the columns {', '.join(table.names)}; {files[0]} has "
                f"{', '.join(tables[0].names)}. Name the ones to read in `columns`, in one order for all files"
            )
    return Files(tables, dtype)


def _open(path: Path, columns: Sequence[str] | None) -> Table:
    suffix = path.suffix.lower()
    if suffix not in OPENERS:
        raise ValueError(
            f"cannot tell what {path} is: its suffix must be one of {', '.join(OPENERS)}; got {path.suffix!r}. Convert it "
            "first, or read text with open_text"
        )
    check_file(path, "open_source wants the files")
    return OPENERS[suffix](path, columns)
