"""Convert tables without random access, once and in blocks, to an array in the cache folder."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tbptt.data.datasets.fetch import DataUnavailable, cache_dir
from tbptt.data.tables.file_changes import FileStamp, SourceChanged
from tbptt.data.tables.npy import open_npy
from tbptt.data.tables.table import Table

FORMAT = "1"  # version of the converted file; a new number invalidates old conversions


def open_converted(
    stamp: FileStamp,
    names: tuple[str, ...],
    header: Any,
    blocks: Callable[[], Iterator[np.ndarray]],
    place: Callable[[int], str],
) -> Table:
    """Open the converted form of a file, converting it first if the cache does not hold it.

    It is stored in the folder tables/ of the cache ($TBPTT_DATA, else $XDG_CACHE_HOME/tbptt,
    else ~/.cache/tbptt). Its name is a digest of the file's path, size, time of change, header
    and the columns, so later runs find it. It is moved into place atomically when complete. The
    cache may be deleted whenever no run reads from it.

    Args:
        stamp: the file, as it was when it was opened.
        names: the columns to convert.
        header: the description of the columns in the file; a change invalidates the conversion.
        blocks: yields the rows of those columns in order, `[n, C]`, of one dtype.
        place: as in `Table`.

    Raises:
        ValueError: there are no rows; and any error of `blocks`.
        DataUnavailable: the cache folder is not writable.
    """
    target = _cache_file(stamp, names, header)
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _convert(stamp, len(names), blocks(), target)
        except OSError as error:
            if isinstance(error, SourceChanged) or error.filename == str(stamp.path):
                raise
            raise DataUnavailable(
                f"{stamp.path} could not be converted into {target.parent}: {error}. Free disk "
                "space, or set TBPTT_DATA to a writable folder"
            ) from error
    array = open_npy(target, None)

    def read(start: int, stop: int) -> np.ndarray:
        # No stamp check, unlike for the original: another process may have replaced the converted
        # file with the same bytes.
        try:
            return array.read(start, stop)
        except FileNotFoundError as error:
            raise SourceChanged(
                f"{target}, the converted form of {stamp.path}, is gone. Resume the run, which "
                "converts it again"
            ) from error

    return Table(stamp, names, array.length, read, place)


def _cache_file(stamp: FileStamp, names: tuple[str, ...], header: Any) -> Path:
    def digest(*parts: object) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    which = digest(FORMAT, str(stamp.path.absolute()), names)
    return cache_dir() / "tables" / f"{which}-{digest(stamp.size, stamp.modified, header)}.npy"


def _convert(stamp: FileStamp, C: int, blocks: Iterator[np.ndarray], target: Path) -> None:
    """Write the converted table to a temporary file and rename it to `target` when complete."""
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
                raise ValueError(
                    f"{stamp.path} has a header and no rows; wanted at least one row of numbers"
                )
            out.seek(0)
            _write_head(out, (T, C), dtype)
            if out.tell() != size:
                raise AssertionError("numpy's header grew into the data")
            out.flush()
            os.fsync(out.fileno())
        stamp.check()
        # Conversions of earlier versions of the same file.
        for old in target.parent.glob(f"{target.name.partition('-')[0]}-*.npy"):
            if old != target:
                old.unlink(missing_ok=True)
        os.replace(fresh, target)


def _write_head(out: io.BufferedIOBase, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Write a .npy header; numpy reserves space in it for the first axis to grow."""
    np.lib.format.write_array_header_1_0(
        out, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )
