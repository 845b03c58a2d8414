"""Read recordings by rows from .npy, .csv and .parquet files that may be larger than memory."""

import bisect
import contextlib
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Num

from tbptt.data.datasets.fetch import DataUnavailable, cache_dir
from tbptt.data.tables.bad_samples import MaskedSource, check_rows
from tbptt.data.tables.convert import convert, open_converted
from tbptt.data.tables.recordings import Class, number_classes
from tbptt.data.tables.scan import Reading
from tbptt.data.tables.table import (
    KINDS,
    SourceChanged,
    Table,
    TableWarning,
    as_paths,
    check_file,
    columns_to_read,
    kind_of,
    open_npy,
    stamp_of,
)

FORMAT = "4"  # version of the converted files; a new number invalidates old conversions
Missing = Literal["refuse", "mask", "hold", "interpolate"]
Gaps = Literal["keep", "split"]


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
    """A `Source` of tables, one or more recordings per file. Made by `open_source`.

    names, lengths: as in `Source`
    dtype:          dtype of the result of `read`
    time:           the column of the times, or None
    time_format:    how the files write their dates, for `strftime` of polars; "" if unknown
    groups:         the group of each recording, as text, or as a tuple of the texts of several
                    columns; () without groups
    classes:        the values of the label, ascending: class i is the number i in its column
    notes:          how the files were read; what was left out or filled in
    warnings:       what was warned of when they were opened
    """

    def __init__(
        self,
        tables: Sequence[Table],
        dtype: Any = np.float32,
        classes: tuple[Class, ...] = (),
    ):
        self.names = tables[0].names
        self.lengths = tuple(length for table in tables for length in table.lengths)
        self.dtype = np.dtype(dtype)
        self.time = tables[0].time
        formats = {table.time_format for table in tables}
        self.time_format = formats.pop() if len(formats) == 1 else ""
        self.groups = tuple(group for table in tables for group in table.groups)
        self.classes = classes
        self.notes = tuple(f"{table.file.path}: {note}" for table in tables for note in table.notes)
        self.warnings = tuple(warning for table in tables for warning in table.warnings)
        self._tables = tuple(tables)
        self._edges = [0, *np.cumsum([sum(table.lengths) for table in tables]).tolist()]

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
        parts = [np.empty((0, len(self.names)), self.dtype)]
        for i, begin, end in self._parts_of(start, stop):
            table = self._tables[i]
            try:
                values = table.read(begin, end)
            finally:
                table.file.check()  # after the read, to detect changes before and during it
            with np.errstate(over="ignore"):  # inf is rejected with its position
                parts.append(values.astype(self.dtype, copy=False))
        return parts[-1] if len(parts) == 2 else np.concatenate(parts)

    def times(self, start: int, stop: int) -> np.ndarray | None:
        """Return the times of rows, `[n]` datetime64[us] or float64; None without a time column."""
        return self._joined("times", start, stop)

    def held(self, start: int, stop: int) -> np.ndarray | None:
        """Return the target of rows with its missing values held, `[n, 1]`, NaN before the first.

        None if the source was opened without `target`.
        """
        return self._joined("held", start, stop)

    def _joined(self, name: str, start: int, stop: int) -> np.ndarray | None:
        parts = []
        for i, begin, end in self._parts_of(start, stop):
            read = getattr(self._tables[i], name)
            if read is None:
                return None
            parts.append(read(begin, end))
        return np.concatenate(parts) if parts else None

    def path_of(self, row: int) -> str:
        """Return the file of a row and its position there."""
        i = min(bisect.bisect_right(self._edges, row), len(self._tables)) - 1
        return f"{self._tables[i].file.path}, {self._tables[i].place(row - self._edges[i])}"

    def _parts_of(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return (table, first row, end) for the rows [start, stop)."""
        if not 0 <= start <= stop <= self._edges[-1]:
            raise IndexError(
                f"rows [{start}, {stop}) are not among the {self._edges[-1]} rows of the source"
            )
        parts, at = [], start
        while at < stop:
            i = bisect.bisect_right(self._edges, at) - 1
            upto = min(stop, self._edges[i + 1])
            parts.append((i, at - self._edges[i], upto - self._edges[i]))
            at = upto
        return parts


def open_source(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    columns: Sequence[str] | None = None,
    *,
    time: str | None = None,
    group: str | Sequence[str] | None = None,
    label: str | None = None,
    classes: Sequence[Class] | None = None,
    target: str | None = None,
    without: Sequence[str] = (),
    missing: Missing = "refuse",
    gaps: Gaps = "keep",
    sort: bool = False,
    dtype: Any = np.float32,
) -> Files | MaskedSource:
    """Open one or several files as recordings, without loading them into memory.

        .npy               an array `[T]` or `[T, C]`; columns "0", "1", ...
        .csv, .tsv         the first row names the columns; plain, .gz or .zst. The separator is
                           found: comma, semicolon, tab or bar; after the last three, numbers may
                           have a decimal comma
        .parquet           numbers, dates and text

    A .npy file without further options is read by position. The others are converted once, in
    blocks, to a folder of the cache ($TBPTT_DATA), as large as the columns are in memory.
    A column of numbers has the values that polars reads, to the last bit. What is not a number is
    left out of the columns and named in `notes`: a row index without a name, dates, text.

    The times are read beside the numbers (`Files.times`). Times that fall within a recording are
    refused. Equal, missing and irregular ones are a TableWarning.

    Values are checked when they are read. A missing, NaN or infinite value raises a `BadSample`
    with its file, row and column; a file that is gone or changed raises a `SourceChanged`.

    Args:
        paths: the file or files, in order, for example `sorted(folder.glob(...))`.
        columns: which columns to read, in this order; None reads all numbers without another use,
            and then all files must have the same names.
        time: the column of the times, dates or numbers; None takes the only column of dates.
        group: a column of numbers or text, or several, that separate the recordings of a file: a
            new one starts where a value changes. Values are compared as written, at any length.
        label: a column of numbers or text that is the class of a recording. It becomes the last
            column, with the number of the class in `Files.classes`.
        classes: all values of the label, in order; None takes those of the files, ascending.
        target: the column to predict; it is read as the last one if it is not one of `columns`, or
            is one of `without`. With missing="mask" its missing values mask no row: there `read`
            gives the newest value of the recording, or NaN before the first, which
            `standardised` replaces by 0. `forecast_batches` gives a forecast of a missing value
            weight 0. Other choices of `missing` treat it as the other columns.
        without: columns to leave out.
        missing: what happens to missing values. "refuse" raises an error when one is read; "mask"
            excludes its row (`masking_bad`); "hold" repeats the newest value of the recording;
            "interpolate" draws a straight line between its neighbours in the recording, so it
            uses later rows. Rows that the last two cannot fill are masked.
        gaps: "split" starts a new recording after a step of more than 1.5 times the median;
            "keep" does not, and warns.
        sort: sort the rows of each file by group and time; needs memory for the whole table.
        dtype: dtype of the result of `read`. Use float64 for columns that float32 would
            coarsen, and scale them (`standardised`) before training.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ImportError: polars is needed and not installed.
        TypeError: `columns` is one string.
        ValueError: no path; an unknown suffix; content that does not match the suffix; columns
            that differ between files; falling times; rows of different groups that are mixed; a
            label that changes within a recording. The message gives file, row and remedy.
        BadSample: a label is not one of `classes`.
        DataUnavailable: the cache folder is not writable.
    """
    files = as_paths(paths)
    chosen = columns_to_read(columns, without, target)
    if missing not in get_args(Missing) or gaps not in get_args(Gaps):
        raise ValueError(
            f"missing must be one of {', '.join(get_args(Missing))}, and gaps one of "
            f"{', '.join(get_args(Gaps))}; got missing={missing!r}, gaps={gaps!r}"
        )
    if label is not None and label in (columns or ()):
        raise ValueError(
            f"label must not be one of columns, the inputs; got {label!r} in both. Leave it out of "
            "columns"
        )
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64; got {np.dtype(dtype)}")
    rest = tuple(without) if chosen is None else ()
    groups = (group,) if isinstance(group, str) else tuple(group or ())
    reading = Reading(chosen, time, groups, label, missing, gaps, sort, target, rest)
    tables = [_open(path, reading) for path in files]
    for table in tables:
        if table.names != tables[0].names:
            raise ValueError(
                f"{table.file.path} has the columns {', '.join(table.names)}; {files[0]} has "
                f"{', '.join(tables[0].names)}. Name the ones to read, in order, in `columns` "
                "(--columns)"
            )
        for warning in table.warnings:
            warnings.warn(warning, TableWarning, stacklevel=2)
    known: tuple[Class, ...] = ()
    if label is not None:
        tables, known = number_classes(tables, label, classes)
    source = Files(tables, dtype, known)
    if missing == "refuse":
        return source
    return MaskedSource(source, target if missing == "mask" else None)


def _open(path: Path, reading: Reading) -> Table:
    if kind_of(path) not in KINDS:
        raise ValueError(
            f"paths must end in one of {', '.join(KINDS)}, or .csv.gz, .csv.zst; got "
            f"{path.suffix!r} in {path}. Convert it first, or read text with open_text"
        )
    check_file(path, "open_source takes the files")
    if kind_of(path) == ".npy" and reading == Reading(reading.columns, target=reading.target):
        return open_npy(path, reading.columns)
    return _open_cached(path, reading)


def _open_cached(path: Path, reading: Reading) -> Table:
    """Open the converted form of a file, converting it first if the cache does not hold it.

    It is a folder in tables/ of the cache ($TBPTT_DATA, else $XDG_CACHE_HOME/tbptt, else
    ~/.cache/tbptt). Its name is a digest of the file's path, size and time of change and of
    `reading`, so later runs find it. It is moved into place atomically when complete. The cache
    may be deleted whenever no run reads from it.

    Raises:
        DataUnavailable: the cache folder is not writable, or full. Otherwise as `convert`.
    """
    stamp = stamp_of(path)
    by_target = reading.missing == "mask" or reading.target in reading.without
    key = reading if by_target else reading._replace(target=None)  # one table for many targets
    which = _digest(FORMAT, str(path.absolute()), tuple(key))
    target = cache_dir() / "tables" / f"{which}-{_digest(stamp.size, stamp.modified)}"
    known = target.exists() and (None, *open_converted(stamp, target).names)
    if not known or reading.target not in known:  # in the second case, convert raises the reason
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as folder:
                fresh = Path(folder) / "table"
                convert(path, reading, fresh)
                stamp.check()
                for old in target.parent.glob(f"{which}-*"):  # of earlier versions of the file
                    with contextlib.suppress(FileNotFoundError):  # another process did
                        old.rename(Path(folder) / old.name)
                if not target.exists():  # another process may have been faster
                    os.replace(fresh, target)
        except OSError as error:
            if isinstance(error, SourceChanged) or error.filename == str(path):
                raise
            raise DataUnavailable(
                f"{path} could not be converted into {target.parent}: {error}. Free disk space, "
                "or set TBPTT_DATA to a writable folder"
            ) from error
    return open_converted(stamp, target)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
