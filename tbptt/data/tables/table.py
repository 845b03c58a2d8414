"""One table on disk: rows of named columns, read on demand."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tbptt.data.tables.file_changes import FileStamp

KINDS = (".npy", ".csv", ".tsv", ".parquet")


class TableWarning(UserWarning):
    """A table was read, and something about it needs attention; the message gives the place."""


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


def choose_columns(
    path: Path, names: tuple[str, ...], columns: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Return the names and indices of the chosen columns; raise a ValueError if one is missing."""
    chosen = names if columns is None else tuple(columns)
    if missing := [name for name in chosen if name not in names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(names)}")
    return chosen, [names.index(name) for name in chosen]


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
    """Raise an error unless `path` is an existing file.

    Args:
        wanted: caller and its expectation, for the message: "load_series takes one file".

    Raises:
        IsADirectoryError, FileNotFoundError: the message gives the path.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; {wanted} in it")
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file {path} (looked in the folder {path.absolute().parent})"
        )
