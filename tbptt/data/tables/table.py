"""One table on disk: some rows of some columns, read when asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tbptt.data.tables.file_changes import Watched


class Table(NamedTuple):
    """A file as a table of numbers.

    file:   the file, as it was when it was opened
    names:  the C columns' names
    length: rows
    read:   (start, stop) -> `[stop - start, C]`, in the file's own precision; nothing else of the file is loaded
    place:  row -> where in the file people find it: "row 7 (the header is row 1)"
    """

    file: Watched
    names: tuple[str, ...]
    length: int
    read: Callable[[int, int], np.ndarray]
    place: Callable[[int], str]


def choose_columns(path: Path, names: tuple[str, ...], columns: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
    """Returns the chosen columns' names and places; a ValueError names what a file has not."""
    chosen = names if columns is None else tuple(columns)
    if missing := [name for name in chosen if name not in names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(names)}")
    return chosen, [names.index(name) for name in chosen]


def need_pyarrow(path: Path) -> None:
    """Raises an ImportError that names the extra, unless pyarrow is installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow, which is not installed: pip install 'tbptt[data]'. A .npy file and text are "
            "read without it"
        ) from error
