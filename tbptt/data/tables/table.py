"""One table on disk: rows of named columns, read on demand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tbptt.data.tables.file_changes import FileStamp


class Table(NamedTuple):
    """A file as a table of numbers.

    file:   the file, as it was when it was opened
    names:  names of the C columns
    length: number of rows
    read:   (start, stop) -> `[stop - start, C]`, in the file's own precision, without loading
            other rows
    place:  row -> its position for messages: "row 7 (the header is row 1)"
    """

    file: FileStamp
    names: tuple[str, ...]
    length: int
    read: Callable[[int, int], np.ndarray]
    place: Callable[[int], str]


def choose_columns(
    path: Path, names: tuple[str, ...], columns: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Return the names and indices of the chosen columns; raise a ValueError if one is missing."""
    chosen = names if columns is None else tuple(columns)
    if missing := [name for name in chosen if name not in names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(names)}")
    return chosen, [names.index(name) for name in chosen]


def need_pyarrow(path: Path) -> None:
    """Raise an ImportError with the install command unless pyarrow is installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow, which is not installed: pip install 'tbptt[data]'. "
            ".npy and text files do not need it"
        ) from error


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
