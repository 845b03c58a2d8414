"""Recordings of the world that any machine can fetch: pulse and skin conductance of two people, the currents of a heart."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tbptt.data.datasets.fetch import DataDamaged, fetch, read_member
from tbptt.data.tables.series import Recording

# Exactly what a pickled numpy array names. Handing the objects out ourselves, rather than importing what the file asks
# for, means that nothing in a file can run; numpy's rebuilding function is had from an array, without private names.
_REBUILD = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,  # its home before numpy 2
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
}

_LEADS = ("ecg1", "ecg2", "ecg3", "ecg4", "egm1", "egm2", "egm3", "egm4", "egm5")


def ppg(subject: int = 2) -> Recording:
    """Loads a pulse sensor (photoplethysmogram) and the skin conductance beside it, about 36 minutes unbroken.

    The wheel is fetched on first use (4.3 MB). Subject 2's pulse sensor clips, at 0 or 2241, in 0.2 % of its samples;
    they are kept as they are.

    Args:
        subject: 1 (265,188 steps) or 2 (277,548 steps).

    Returns:
        A Recording with the columns "ppg" and "gsr", in the sensors' own units, and rate 128 Hz.

    Raises:
        ValueError: another subject.
        DataUnavailable, DataDamaged: from `fetch`; or a file of the wheel is not what it should be.
    """
    if subject not in (1, 2):
        raise ValueError(f"subject must be 1 or 2, there are two people; got {subject!r}")
    wheel = fetch("spkit")
    key = f"x{subject}"
    columns, rates = [], []
    for name in ("ppg", "gsr"):
        column, rate = _read_array(wheel, f"spkit/data/files/{name}_samples.pkl", key, 1)
        columns.append(column)
        rates.append(rate)
    if len(columns[0]) != len(columns[1]) or rates[0] != rates[1]:
        raise DataDamaged(
            f"{wheel}: ppg and gsr of subject {subject} must be of one length and rate; got {len(columns[0])} and "
            f"{len(columns[1])} steps at {rates[0]} and {rates[1]} Hz"
        )
    values = np.stack(columns, axis=1).astype(np.float64)
    return Recording(values, ("ppg", "gsr"), float(rates[0]), f"{wheel.name}, subject {subject}")


def ecg() -> Recording:
    """Loads 28.8 seconds of a heart's currents: 4 leads of a surface ECG, and 5 contact electrograms from inside it.

    The wheel is fetched on first use (4.3 MB); it is the one of `ppg`. Values are kept as they are.

    Returns:
        A Recording of 59,040 steps with the columns "ecg1" .. "ecg4", "egm1" .. "egm5", in the recorder's own units (the
        source names none), and rate 2048 Hz.

    Raises:
        DataUnavailable, DataDamaged: from `fetch`; or the file of the wheel is not what it should be.
    """
    wheel, member = fetch("spkit"), "spkit/data/files/ecg_egm_smaple_28s.pkl"  # its own spelling
    values, rate = _read_array(wheel, member, "X", 2)
    if values.shape[1] != len(_LEADS):
        raise DataDamaged(f"{wheel}: {member}, key 'X' must have {len(_LEADS)} columns; got shape {values.shape}")
    return Recording(values.astype(np.float64), _LEADS, float(rate), f"{wheel.name}, ECG and electrograms")


def _read_array(wheel: Path, member: str, key: str, axes: int) -> tuple[np.ndarray, Any]:
    """Reads a pickled dict, and returns its array of numbers `key` and its sampling rate."""
    where = f"{wheel}: {member}"
    content = read_pickle(read_member(wheel, member), where)
    if not isinstance(content, dict) or not {key, "fs"} <= content.keys():
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataDamaged(f"{where} must hold a dict with the keys {key!r} and 'fs'; got {found}")
    array = content[key]
    if not isinstance(array, np.ndarray) or array.ndim != axes or array.dtype.kind not in "if":
        wanted = "one-dimensional" if axes == 1 else "two-dimensional"
        raise DataDamaged(f"{where}, key {key!r} must be a {wanted} array of numbers; got {array!r}")
    return array, content["fs"]


def read_pickle(data: bytes, source: str) -> Any:
    """Reads a pickle of numpy arrays, numbers, strings and containers of them, and of nothing else.

    Args:
        data: the pickle.
        source: where it came from, for the error.

    Raises:
        DataDamaged: the pickle is truncated, is no pickle, or asks for anything but a numpy array. A pickle may name
            any function and have it called; such a one is refused before the function is even looked up.
    """
    try:
        return _ArraysOnly(io.BytesIO(data)).load()
    except Exception as error:  # damaged bytes can make an unpickler raise nearly anything
        raise DataDamaged(f"{source} is not a readable pickle of numpy arrays: {error}") from error


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which is refused: only numpy arrays are allowed"
            ) from None
