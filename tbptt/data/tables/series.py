"""Load a recording from a .npy, .npz or .csv file; every value is checked, none is replaced."""

import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from tbptt.data.tables.convert import convert, open_converted
from tbptt.data.tables.scan import Reading
from tbptt.data.tables.sources import Files
from tbptt.data.tables.table import (
    check_columns,
    check_file,
    check_names,
    check_numbers,
    columns_to_read,
    kind_of,
    open_npy,
    stamp_of,
)

# Exceptions of numpy for a truncated or invalid .npy header, and for pickled objects.
_UNREADABLE = (ValueError, EOFError, OSError, SyntaxError)


class Recording(NamedTuple):
    """Quantities sampled at a constant rate.

    values: `[T, C]` float64, finite
    names:  names of the C columns
    rate:   steps per second, Hz; 1.0 if unknown
    source: description of where the values came from
    """

    values: Float64[np.ndarray, "T C"]
    names: tuple[str, ...]
    rate: float
    source: str


def load_series(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    without: Sequence[str] = (),
    missing: Literal["refuse", "hold", "interpolate"] = "refuse",
) -> Recording:
    """Load a recording from a file.

        .csv, .tsv, .parquet   as in `open_source`; plain, .gz or .zst
        .npy   an array `[T]` or `[T, C]`; the columns are named "0", "1", ...
        .npz   named arrays; one `[T]` or `[T, C]` array (columns "x[0]", "x[1]", ...), or
               several `[T]` arrays as columns

    Integers and booleans are converted to float64. The file does not hold the rate: set it with
    `recording._replace(rate=...)`.

    Args:
        path: the file.
        columns: which columns to read, in this order; for a .npz file, the names of its arrays.
            None reads every column, or the only array of a .npz file.
        without: columns to leave out.
        missing: what happens to missing values of a table, as in `open_source`.

    Returns:
        The Recording, with rate 1.0.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        TypeError: `columns` is one string.
        ValueError: the content does not match the suffix, a column is missing, or a value is
            not a finite number; the message gives the file, the position and the remedy.
    """
    path = Path(path)
    arrays = {".npy": _read_npy, ".npz": _read_npz}
    suffixes = (".csv", ".tsv", ".parquet", *arrays)
    check_columns(columns)
    if kind_of(path) not in suffixes:
        raise ValueError(
            f"path must end in one of {', '.join(suffixes)}; got {path.suffix!r} in {path}. "
            "Convert the file first"
        )
    check_file(path, "load_series takes one file")
    if kind_of(path) in arrays:
        if missing != "refuse":
            raise ValueError(
                f"missing={missing!r} is for .csv and .parquet files; got {path}. Fill in the "
                "array, or use open_source"
            )
        values, names = arrays[kind_of(path)](path, columns)
        check_names(path, names, without)
        kept = [i for i, name in enumerate(names) if name not in without]
        values, names = values[:, kept], tuple(names[i] for i in kept)
        _check_finite(values, names, str(path))
    else:
        values, names = _read_table(path, columns, without, missing)
    return Recording(values, names, 1.0, str(path))


def _read_table(
    path: Path, columns: Sequence[str] | None, without: Sequence[str], missing: str
) -> tuple[Float64[np.ndarray, "T C"], tuple[str, ...]]:
    """Read a table through the conversion that `open_source` uses, in a temporary folder."""
    chosen = columns_to_read(columns, without)
    reading = Reading(chosen, missing=missing, without=tuple(without) if chosen is None else ())
    with tempfile.TemporaryDirectory() as folder:
        convert(path, reading, Path(folder) / "table")
        source = Files([open_converted(stamp_of(path), Path(folder) / "table")], np.float64)
        return source.read(0, sum(source.lengths)), source.names


def _read_npy(
    path: Path, columns: Sequence[str] | None
) -> tuple[Float64[np.ndarray, "T C"], tuple[str, ...]]:
    table = open_npy(path, columns)
    return _as_float(table.read(0, sum(table.lengths))), table.names


def _read_npz(
    path: Path, columns: Sequence[str] | None
) -> tuple[Float64[np.ndarray, "T C"], tuple[str, ...]]:
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            if columns is None and len(keys) != 1:
                raise ValueError(
                    f"choose arrays with `columns`; it holds {len(keys)}: {', '.join(keys)}"
                )
            chosen = keys if columns is None else list(columns)
            if missing := [name for name in chosen if name not in keys]:
                raise ValueError(
                    f"it has no array {missing[0]!r}; its arrays are {', '.join(keys)}"
                )
            arrays = []
            for name in chosen:
                with archive.open(f"{name}.npy") as member:
                    arrays.append(np.lib.format.read_array(member, allow_pickle=False))
    except (
        *_UNREADABLE,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ValueError(f"cannot read {path} as a .npz file of numbers: {error}") from error
    if len(arrays) > 1 and any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
        shapes = ", ".join(
            f"{name} {array.shape}" for name, array in zip(chosen, arrays, strict=True)
        )
        raise ValueError(
            f"{path}: several arrays can be read as columns only if all are [T], of one T; got "
            f"{shapes}. Name one of them, or some of one length, in `columns`"
        )
    for name, array in zip(chosen, arrays, strict=True):
        check_numbers(array, f"{path}, array {name!r}")
    parts = [_as_float(array) for array in arrays]
    names = tuple(chosen)
    if arrays[0].ndim == 2:
        names = tuple(f"{chosen[0]}[{i}]" for i in range(parts[0].shape[1]))
    return np.concatenate(parts, axis=1), names


def _as_float(array: np.ndarray) -> Float64[np.ndarray, "T C"]:
    with np.errstate(over="ignore"):  # a long double beyond float64 becomes inf, which is rejected
        values = np.ascontiguousarray(array, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def _check_finite(values: Float64[np.ndarray, "T C"], names: tuple[str, ...], where: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        step, column = map(int, np.argwhere(bad)[0])
        raise ValueError(
            f"{where}, step {step} (from 0), column {names[column]!r} is {values[step, column]}, "
            f"one of {bad.sum()} values that are not finite. Fill them in, or exclude the column: "
            f"without=({names[column]!r},)"
        )
