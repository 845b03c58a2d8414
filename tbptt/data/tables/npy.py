"""An array on disk as a table: any rows by one positional read, whatever the size of the file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tbptt.data.tables.file_changes import SourceChanged, watch
from tbptt.data.tables.table import Table, choose_columns


def open_npy(path: Path, columns: Sequence[str] | None) -> Table:
    """Opens an array `[T]` or `[T, C]` of real numbers; the columns' names are "0", "1", ...

    The file is read by position, not through a memory map: a map of a file that someone shortens ends the process with a
    bus error, a read that comes back short is an error with a name; and the pages of a map count as the process's memory.

    Raises:
        ValueError: the file is no such array, or ends before its last row; or it has no such column.
    """
    try:
        # Mapped for a moment: numpy then compares the header with the file's size, and tells where the numbers begin.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(
            f"cannot read {path} as a .npy file of numbers: {error}. If it was cut short, write or copy it again"
        ) from error
    if not isinstance(array, np.memmap) or array.dtype.kind not in "biuf":
        raise ValueError(f"{path} must hold one array of real numbers; got {getattr(array, 'dtype', type(array).__name__)}")
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"{path} must be a non-empty array [T] or [T, C]; got shape {array.shape}. Reshape it first")
    T, C = (*array.shape, 1)[:2]
    names, places = choose_columns(path, tuple(map(str, range(C))), columns)
    by_columns = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
    dtype, offset, watched = array.dtype, int(array.offset), watch(path)
    del array

    def read(start: int, stop: int) -> np.ndarray:
        n = stop - start
        with path.open("rb", buffering=0) as file:
            if by_columns:
                parts = [_read(file, offset + (place * T + start) * dtype.itemsize, n, dtype, path) for place in places]
                return np.stack(parts, axis=1)
            flat = _read(file, offset + start * C * dtype.itemsize, n * C, dtype, path)
        rows = flat.reshape(n, C)
        return rows if len(places) == C and places == sorted(places) else rows[:, places]

    return Table(watched, names, T, read, lambda row: f"row {row} (from 0)")


def _read(file, offset: int, count: int, dtype: np.dtype, path: Path) -> np.ndarray:
    """Reads `count` numbers from a place in a raw file: all of them, or an error."""
    numbers = np.empty(count, dtype)
    rest = memoryview(numbers.data).cast("B")
    file.seek(offset)
    while rest:
        got = file.readinto(rest)
        if not got:
            raise SourceChanged(f"{path} ended {len(rest)} bytes early, at byte {file.tell()}: it was shortened")
        rest = rest[got:]
    return numbers
