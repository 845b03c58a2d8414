"""Open a .npy array on disk as a table, by positional reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tbptt.data.tables.file_changes import SourceChanged, stamp_of
from tbptt.data.tables.table import Table, choose_columns


def open_npy(path: Path, columns: Sequence[str] | None) -> Table:
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
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(
            f"cannot read {path} as a .npy file of numbers: {error}. If it was cut short, write or "
            "copy it again"
        ) from error
    if not isinstance(array, np.memmap) or array.dtype.kind not in "biuf":
        got = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{path} must hold one array of real numbers; got {got}")
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"{path} must be a non-empty array [T] or [T, C]; got shape {array.shape}. Reshape it "
            "first"
        )
    T, C = (*array.shape, 1)[:2]
    names, places = choose_columns(path, tuple(map(str, range(C))), columns)
    by_columns = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
    dtype, offset, stamp = array.dtype, int(array.offset), stamp_of(path)
    del array

    def read(start: int, stop: int) -> np.ndarray:
        n = stop - start
        with path.open("rb", buffering=0) as file:
            if by_columns:
                parts = [
                    _read(file, offset + (place * T + start) * dtype.itemsize, n, dtype, path)
                    for place in places
                ]
                return np.stack(parts, axis=1)
            flat = _read(file, offset + start * C * dtype.itemsize, n * C, dtype, path)
        rows = flat.reshape(n, C)
        return rows if len(places) == C and places == sorted(places) else rows[:, places]

    return Table(stamp, names, (T,), read, lambda row: f"row {row} (from 0)")


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
