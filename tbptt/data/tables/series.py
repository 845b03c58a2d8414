"""A user's own recording, from a .npy, .npz or .csv file: every value is checked, none is dropped or replaced."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from tbptt.data.tables.csv_header import read_csv
from tbptt.data.tables.files import check_file

# What numpy raises at a .npy header that is truncated or foreign, besides refusing pickled objects.
_UNREADABLE = (ValueError, EOFError, OSError, SyntaxError)


class Recording(NamedTuple):
    """Some quantities, sampled at a steady rate.

    values: `[T, C]` float64, finite
    names:  the C columns' names
    rate:   steps per second, Hz; 1.0 where unknown
    source: where the values came from, for people
    """

    values: Float64[np.ndarray, "T C"]
    names: tuple[str, ...]
    rate: float
    source: str


def load_series(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Recording:
    """Loads a recording from a file. The rate is not in the file: set it with `recording._replace(rate=...)`.

        .csv   comma-separated, UTF-8, cells may be quoted; the first row names the columns
        .npy   an array `[T]` or `[T, C]`; the columns' names are "0", "1", ...
        .npz   named arrays; one `[T]` or `[T, C]` array (columns "x[0]", "x[1]", ...), or several `[T]` side by side

    Integers and booleans are converted to float64.

    Args:
        path: the file.
        columns: which columns to read, in this order; of a .npz file, the names of its arrays. None reads every column,
            and of a .npz file its only array.

    Returns:
        The Recording, rate 1.0.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        TypeError: `columns` is one string.
        ValueError: the file is not what its suffix says, a column is missing, or a value is not a finite number; the
            message names the file, the place in it, and the remedy.
    """
    path = Path(path)
    readers = {".csv": read_csv, ".npy": _read_npy, ".npz": _read_npz}
    _check_columns(columns)
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"cannot tell what {path} is: its suffix must be one of {', '.join(readers)}; got {path.suffix!r}. Convert "
            "the file first"
        )
    check_file(path, "load_series wants one file")
    values, names = readers[path.suffix.lower()](path, columns)
    _check_finite(values, names, str(path))
    return Recording(values, names, 1.0, str(path))


def _check_columns(columns: Sequence[str] | None) -> None:
    if isinstance(columns, str):  # a string is a sequence of strings too: its letters
        raise TypeError(f"columns must be a sequence of names; got the string {columns!r}. Write ({columns!r},)")
    if columns is not None and (len(columns) == 0 or len(set(columns)) < len(columns)):
        raise ValueError(f"columns must name at least one column, and none twice; got {tuple(columns)}")


def _read_npy(path: Path, columns: Sequence[str] | None) -> tuple[Float64[np.ndarray, "T C"], tuple[str, ...]]:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except _UNREADABLE as error:
        raise ValueError(f"cannot read {path} as a .npy file of numbers: {error}") from error
    values = _as_columns(array, str(path))
    names = tuple(str(i) for i in range(values.shape[1]))
    if columns is None:
        return values, names
    if missing := [name for name in columns if name not in names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(names)}")
    return values[:, [names.index(name) for name in columns]], tuple(columns)


def _read_npz(path: Path, columns: Sequence[str] | None) -> tuple[Float64[np.ndarray, "T C"], tuple[str, ...]]:
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            if columns is None and len(keys) != 1:
                raise ValueError(f"several arrays need `columns` to choose; it holds {len(keys)}: {', '.join(keys)}")
            chosen = keys if columns is None else list(columns)
            if missing := [name for name in chosen if name not in keys]:
                raise ValueError(f"it has no array {missing[0]!r}; its arrays are {', '.join(keys)}")
            arrays = []
            for name in chosen:
                with archive.open(f"{name}.npy") as member:
                    arrays.append(np.lib.format.read_array(member, allow_pickle=False))
    except (*_UNREADABLE, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"cannot read {path} as a .npz file of numbers: {error}") from error
    if len(arrays) > 1 and any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(chosen, arrays, strict=True))
        raise ValueError(f"{path}: several arrays are read side by side if all are [T], of one T; got {shapes}")
    parts = [_as_columns(array, f"{path}, array {name!r}") for name, array in zip(chosen, arrays, strict=True)]
    names = tuple(chosen)
    if arrays[0].ndim == 2:
        names = tuple(f"{chosen[0]}[{i}]" for i in range(parts[0].shape[1]))
    return np.concatenate(parts, axis=1), names


def _as_columns(array: np.ndarray, where: str) -> Float64[np.ndarray, "T C"]:
    """Returns an array of numbers `[T]` or `[T, C]` as float64 `[T, C]`."""
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{where} must hold real numbers; got dtype {array.dtype}. Convert it first (of complex numbers, store the "
            "real and imaginary parts as two columns)"
        )
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"{where} must be a non-empty array [T] or [T, C]; got shape {array.shape}. Reshape it first")
    with np.errstate(over="ignore"):  # a long double beyond float64 becomes inf, which is refused with its place
        values = np.ascontiguousarray(array, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def _check_finite(values: Float64[np.ndarray, "T C"], names: tuple[str, ...], where: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        step, column = map(int, np.argwhere(bad)[0])
        raise ValueError(
            f"{where}, step {step} (from 0), column {names[column]!r} is {values[step, column]}, one of {bad.sum()} "
            "values that are not finite. Fill or cut them out first: nothing is filled in silently"
        )
