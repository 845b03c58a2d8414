"""Load measured recordings: pulse and skin conductance of two people, and the ECG of a heart."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tbptt.data.datasets.fetch import DataDamaged, fetch, read_member
from tbptt.data.tables.series import Recording

# The globals of a pickled numpy array. A fixed table instead of imports means that a file cannot
# run code. numpy's reconstruction function comes from an array, to avoid private names.
_REBUILD = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,  # before numpy 2
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
}

_LEADS = ("ecg1", "ecg2", "ecg3", "ecg4", "egm1", "egm2", "egm3", "egm4", "egm5")


def ppg(subject: int = 2) -> Recording:
    """Load a pulse sensor (photoplethysmogram) and skin conductance, about 36 minutes unbroken.

    The wheel is fetched on first use (4.3 MB). Subject 2's pulse sensor clips, at 0 or 2241, in
    0.2 % of its samples; they are kept.

    Args:
        subject: 1 (265,188 steps) or 2 (277,548 steps).

    Returns:
        A Recording with the columns "ppg" and "gsr", in the units of the sensors, and rate
        128 Hz.

    Raises:
        ValueError: another subject.
        DataUnavailable, DataDamaged: from `fetch`; or a file of the wheel is not as expected.
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
            f"{wheel}: ppg and gsr of subject {subject} must have one length and rate; got "
            f"{len(columns[0])} and {len(columns[1])} steps at {rates[0]} and {rates[1]} Hz"
        )
    values = np.stack(columns, axis=1).astype(np.float64)
    return Recording(values, ("ppg", "gsr"), float(rates[0]), f"{wheel.name}, subject {subject}")


def ecg() -> Recording:
    """Load 28.8 seconds of 4 surface ECG leads and 5 contact electrograms from inside the heart.

    The wheel is fetched on first use (4.3 MB); it is the one of `ppg`. Values are unchanged.

    Returns:
        A Recording of 59,040 steps with the columns "ecg1" .. "ecg4", "egm1" .. "egm5", in the
        recorder's units (the source gives none), and rate 2048 Hz.

    Raises:
        DataUnavailable, DataDamaged: from `fetch`; or the file of the wheel is not as expected.
    """
    wheel, member = fetch("spkit"), "spkit/data/files/ecg_egm_smaple_28s.pkl"  # its own spelling
    values, rate = _read_array(wheel, member, "X", 2)
    if values.shape[1] != len(_LEADS):
        raise DataDamaged(
            f"{wheel}: {member}, key 'X' must have {len(_LEADS)} columns; got shape {values.shape}"
        )
    return Recording(
        values.astype(np.float64), _LEADS, float(rate), f"{wheel.name}, ECG and electrograms"
    )


def _read_array(wheel: Path, member: str, key: str, axes: int) -> tuple[np.ndarray, Any]:
    """Read a pickled dict, and return its array `key` and its sampling rate."""
    where = f"{wheel}: {member}"
    content = read_pickle(read_member(wheel, member), where)
    if not isinstance(content, dict) or not {key, "fs"} <= content.keys():
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataDamaged(f"{where} must hold a dict with the keys {key!r} and 'fs'; got {found}")
    array = content[key]
    if not isinstance(array, np.ndarray) or array.ndim != axes or array.dtype.kind not in "if":
        wanted = "one-dimensional" if axes == 1 else "two-dimensional"
        raise DataDamaged(
            f"{where}, key {key!r} must be a {wanted} array of numbers; got {array!r}"
        )
    return array, content["fs"]


def read_pickle(data: bytes, source: str) -> Any:
    """Read a pickle that may hold only numpy arrays, numbers, strings and containers of them.

    Args:
        data: the pickle.
        source: its name, for the error message.

    Raises:
        DataDamaged: the pickle is truncated, invalid, or refers to anything but a numpy array. A
            pickle can call arbitrary functions; such a pickle is rejected before the lookup.
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
                f"it refers to {module_name}.{global_name}, which is refused: only numpy arrays "
                "are allowed"
            ) from None
