"""Tables that have no random access: converted once, streaming, into an array on disk that has."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tbptt.data.datasets.fetch import DataUnavailable, cache_dir
from tbptt.data.tables.file_changes import SourceChanged, Watched
from tbptt.data.tables.npy import open_npy
from tbptt.data.tables.table import Table

FORMAT = "1"  # of the converted file: another number, another conversion


def converted(
    watched: Watched,
    names: tuple[str, ...],
    header: Any,
    blocks: Callable[[], Iterator[np.ndarray]],
    place: Callable[[int], str],
) -> Table:
    """Opens the converted form of a file, and makes it first if it is not in the cache.

    It lies in the folder tables/ of the cache ($TBPTT_DATA, else $XDG_CACHE_HOME/tbptt, else ~/.cache/tbptt) under a name
    made of the file's path, size, time of change, header and the columns, so later runs find it there. It is moved into
    place in one atomic step when it is whole. The cache may be deleted whenever no run reads from it.

    Args:
        names: the columns that are converted.
        header: what the file says of its columns; another one is another conversion.
        blocks: yields the rows of those columns, `[n, C]` in order, of one dtype.
        place: as in `Table`.

    Raises:
        ValueError: there are no rows; and whatever `blocks` raises.
        DataUnavailable: the cache folder cannot be written.
    """
    target = _cache_file(watched, names, header)
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _convert(watched, len(names), blocks(), target)
        except OSError as error:
            if isinstance(error, SourceChanged) or error.filename == str(watched.path):
                raise
            raise DataUnavailable(
                f"{watched.path} could not be converted into {target.parent}: {error}. Make room, or set TBPTT_DATA to a "
                "folder that can be written"
            ) from error
    array = open_npy(target, None)

    def read(start: int, stop: int) -> np.ndarray:
        # Not watched, unlike the original: another process may have converted it too, and put the same bytes in its place.
        try:
            return array.read(start, stop)
        except FileNotFoundError as error:
            raise SourceChanged(
                f"{target}, the converted form of {watched.path}, is gone. Resume the run: it is then made again"
            ) from error

    return Table(watched, names, array.length, read, place)


def _cache_file(watched: Watched, names: tuple[str, ...], header: Any) -> Path:
    def digest(*parts: object) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    which = digest(FORMAT, str(watched.path.absolute()), names)
    return cache_dir() / "tables" / f"{which}-{digest(watched.size, watched.modified, header)}.npy"


def _convert(watched: Watched, C: int, blocks: Iterator[np.ndarray], target: Path) -> None:
    """Writes the converted table; only a whole one ever bears the target's name."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as folder:
        fresh, T, size, dtype = Path(folder) / "table.npy", 0, 0, np.dtype(np.float64)
        with fresh.open("wb") as out:
            for block in blocks:
                if T == 0:
                    dtype = block.dtype
                    _write_head(out, (0, C), dtype)
                    size = out.tell()
                block.tofile(out)
                T += len(block)
            if T == 0:
                raise ValueError(f"{watched.path} has a header and no rows; wanted at least one row of numbers")
            out.seek(0)
            _write_head(out, (T, C), dtype)
            if out.tell() != size:
                raise AssertionError("numpy's header grew into the data")
            out.flush()
            os.fsync(out.fileno())
        watched.check()
        for old in target.parent.glob(f"{target.name.partition('-')[0]}-*.npy"):  # of the same file, as it was before
            if old != target:
                old.unlink(missing_ok=True)
        os.replace(fresh, target)


def _write_head(out: io.BufferedIOBase, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Writes a .npy header; numpy leaves room in it for the first axis to grow."""
    np.lib.format.write_array_header_1_0(out, {"descr": dtype.str, "fortran_order": False, "shape": shape})
