"""A file as a table: rows that are read by position, and an error if the file changes meanwhile."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

KINDS = (".npy", ".csv", ".tsv", ".parquet")


class TableWarning(UserWarning):
    """A table was read, and something about it needs attention; the message gives the place."""


class SourceChanged(OSError):
    """A data file is gone or is not the one that was opened, so its rows may have moved."""


class FileStamp(NamedTuple):
    """State of a file when it was opened.

    path:               the file
    size, modified, id: its size in bytes, time of change in ns, and inode number
    """

    path: Path
    size: int
    modified: int
    id: int

    def check(self) -> None:
        """Raise SourceChanged unless the file exists unchanged; one `stat` call, about 1 us."""
        try:
            now = stamp_of(self.path)
        except OSError as error:
            raise SourceChanged(
                f"{self.path} disappeared while it was read: {error.strerror}. Restore it, "
                "unchanged, and resume the run from its newest checkpoint"
            ) from error
        if now == self:
            return
        what = "was replaced by another file or written to"
        if now.size != self.size:
            verb = "shrank" if now.size < self.size else "grew"
            what = f"{verb} from {self.size} to {now.size} bytes"
        raise SourceChanged(
            f"{self.path} {what} while it was read. The data of a run must not change: restore the "
            "file, or start a new run on a finished copy"
        )


def stamp_of(path: Path) -> FileStamp:
    """Return the current state of a file; raise an OSError if it does not exist."""
    found = os.stat(path)
    return FileStamp(path, found.st_size, found.st_mtime_ns, found.st_ino)


class Table(NamedTuple):
    """A file as a table of numbers.

    file:     the file, as it was when it was opened
    names:    names of the C columns
    lengths:  rows of each recording
    read:     (start, stop) -> `[stop - start, C]`, in the file's own precision, without loading
              other rows
    place:    row -> its position for messages: "row 7 (the header is row 1)"
    times:    (start, stop) -> `[stop - start]`, datetime64[us] or float64; None without a time
    time:     the name of its column, or None
    groups:   the group of each recording, as text or several texts; () without groups
    classes:  the values of the label, as text; class i is the number i in the last column
    notes:    how the file was read; what was left out or filled in
    warnings: what needs attention
    time_format: how the file writes its dates, for `strftime` of polars; "" where it does not say
    held:     (start, stop) -> `[stop - start, 1]`, the target with its missing values held; or None
    """

    file: FileStamp
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    place: Callable[[int], str]
    times: Callable[[int, int], np.ndarray] | None = None
    time: str | None = None
    groups: tuple[str | tuple[str, ...], ...] = ()
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    time_format: str = ""
    held: Callable[[int, int], np.ndarray] | None = None


def open_npy(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Open an array `[T]` or `[T, C]` of real numbers; the columns are named "0", "1", ...

    The file is read by position, not through a memory map. If another program shortens the
    file, a map ends the process with a bus error, while a short read raises an exception. The
    pages of a map also count as memory of the process.

    Raises:
        ValueError: the file is not such an array, or ends before its last row; or it has no
            such column.
    """
    try:
        # A short-lived map: numpy compares the header with the file size, and gives the offset.
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(
            f"cannot read {path} as a .npy file of numbers: {error}. If it was cut short, write or "
            "copy it again"
        ) from error
    check_numbers(array, str(path))
    T, C = (*array.shape, 1)[:2]
    names = tuple(map(str, range(C)))
    chosen = names if columns is None else tuple(columns)
    check_names(path, names, chosen)
    places = [names.index(name) for name in chosen]
    by_columns = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
    dtype, offset, stamp = array.dtype, int(array.offset), stamp_of(path)
    del array

    def read(start: int, stop: int) -> np.ndarray:
        n = stop - start
        with path.open("rb", buffering=0) as file:
            if by_columns:
                at = [offset + (place * T + start) * dtype.itemsize for place in places]
                return np.stack([_read(file, a, n, dtype, path) for a in at], axis=1)
            flat = _read(file, offset + start * C * dtype.itemsize, n * C, dtype, path)
        rows = flat.reshape(n, C)
        return rows if places == list(range(C)) else rows[:, places]

    return Table(stamp, chosen, (T,), read, lambda row: f"row {row} (from 0)")


def _read(file, offset: int, count: int, dtype: np.dtype, path: Path) -> np.ndarray:
    """Read `count` numbers from an offset in a raw file; raise an error if there are fewer."""
    numbers = np.empty(count, dtype)
    rest = memoryview(numbers.data).cast("B")
    file.seek(offset)
    while rest:
        got = file.readinto(rest)
        if not got:
            raise SourceChanged(
                f"{path} ended {len(rest)} bytes early, at byte {file.tell()}: it was shortened. "
                "Restore it and resume the run"
            )
        rest = rest[got:]
    return numbers


def check_numbers(array: np.ndarray, where: str) -> None:
    """Raise a ValueError unless an array holds real numbers `[T]` or `[T, C]`."""
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{where} must hold real numbers; got dtype {array.dtype}. Convert it first (store the "
            "real and imaginary parts of complex numbers as two columns)"
        )
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"{where} must be a non-empty array [T] or [T, C]; got shape {array.shape}. Reshape it "
            "first"
        )


def check_names(path: Path, names: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise a ValueError if a column that is wanted does not exist."""
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; its columns are {', '.join(names)}. Name one of "
            "them"
        )


def check_columns(columns: Sequence[str] | None) -> None:
    """Raise an error unless `columns` is None, or names without repetition."""
    if isinstance(columns, str):  # a string is a sequence of strings, its letters
        raise TypeError(
            f"columns must be a sequence of names; got the string {columns!r}. Write ({columns!r},)"
        )
    if columns is not None and (len(columns) == 0 or len(set(columns)) < len(columns)):
        raise ValueError(
            f"columns must name at least one column, and none twice; got {tuple(columns)}"
        )


def columns_to_read(
    columns: Sequence[str] | None, without: Sequence[str], target: str | None = None
) -> tuple[str, ...] | None:
    """Return the columns except those of `without`, then the target if it is not one; None: all.

    Raises:
        TypeError, ValueError: as `check_columns`, for both; `without` names none of the columns.
    """
    check_columns(columns)
    if isinstance(without, str):
        raise TypeError(
            f"without must be a sequence of names; got the string {without!r}. Write ({without!r},)"
        )
    if columns is None:
        return None
    if unknown := [name for name in without if name not in columns]:
        raise ValueError(
            f"without (--without) must name some of columns, {', '.join(columns)}; got "
            f"{unknown[0]!r}"
        )
    chosen = tuple(name for name in columns if name not in without)
    chosen = chosen if target in (None, *chosen) else (*chosen, target)
    check_columns(chosen)
    return chosen


def kind_of(path: Path) -> str:
    """Return the suffix that gives the format of a file: ".csv" for x.csv, x.CSV and x.csv.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = len(suffixes) == 2 and suffixes[1] in (".gz", ".zst") and suffixes[0] in KINDS[1:3]
    return suffixes[0] if packed else path.suffix.lower()


def as_paths(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return one or several paths as a list; raise a ValueError if there is none."""
    one = isinstance(paths, str | os.PathLike)
    files = [Path(paths)] if one else [Path(path) for path in paths]
    if not files:
        raise ValueError(
            "paths must name at least one file; got none. Check that the pattern matches a file"
        )
    return files


def check_file(path: Path, wanted: str) -> None:
    """Raise an IsADirectoryError or FileNotFoundError unless `path` is an existing file.

    Args:
        wanted: caller and its expectation, for the message: "load_series takes one file".
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; {wanted} in it")
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file {path} (looked in the folder {path.absolute().parent})"
        )
