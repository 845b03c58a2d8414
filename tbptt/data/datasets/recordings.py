"""Recordings by name: measured ones, which are downloaded, and the Mackey-Glass series.

Measured are the pulse and skin conductance of two people, and the ECG of a heart.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from tbptt import windows
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
BETA, GAMMA, POWER = 0.2, 0.1, 10  # of the Mackey-Glass equation
STEPS_PER_UNIT = 10  # its integration step is 0.1 time units


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


def mackey_glass(
    steps: int = 10_000, seed: int = 0, tau: float = 17.0, washout: int = 1_000
) -> Recording:
    """Generate a Mackey-Glass series, sampled once per time unit, without its transient.

        dx/dt = beta x(t - tau) / (1 + x(t - tau)^n) - gamma x(t),   beta = 0.2, gamma = 0.1, n = 10

    Before time 0, x is a constant drawn from 0.5 .. 1.3. The series is weakly chaotic at
    tau = 17, more so at tau = 30, and converges to x = 1 below about 4.5. About 10 microseconds
    per sample.

    Args:
        steps: static, number of samples T.
        seed: determines the stretch of the attractor.
        tau: the delay, in time units, a multiple of 0.1.
        washout: static, number of samples discarded at the start.

    Returns:
        A Recording `[steps, 1]` with the column "x" and rate 1.0, one sample per time unit.

    Raises:
        TypeError: steps or washout is not an int.
        ValueError: steps < 1, washout < 0, or tau is not a positive multiple of 0.1.

    References:
        Mackey and Glass, *Oscillation and chaos in physiological control systems*, Science 197
        (1977) 287-289.
    """
    windows.check_positive_int("steps", steps)
    if washout != 0:
        windows.check_positive_int("washout", washout)
    history = float(np.random.default_rng(seed).uniform(0.5, 1.3))
    values = integrate(history, washout + steps, tau)[washout:, None]
    return Recording(
        values, ("x",), 1.0, f"Mackey-Glass, tau={tau}, seed={seed}, washout={washout}"
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


def integrate(history: float, steps: int, tau: float = 17.0) -> Float64[np.ndarray, " T"]:
    """Integrate the equation from a constant past: samples x(0) = history, x(1), ..., x(steps - 1).

    Classic Runge-Kutta of order 4 with a step h = 0.1. Its middle stages need the delayed x
    half-way between two nodes:

        x(t + h/2) = (x(t) + x(t+h)) / 2 + h/8 (x'(t) - x'(t+h))            (cubic Hermite)

    which, unlike linear interpolation, preserves order 4.
    """
    h = 1.0 / STEPS_PER_UNIT
    delay = round(tau * STEPS_PER_UNIT) if math.isfinite(tau) else 0
    if delay < 1 or abs(delay - tau * STEPS_PER_UNIT) > 1e-9 * delay:
        raise ValueError(
            f"tau must be a positive multiple of {h} time units, the integration step; got "
            f"tau={tau}"
        )

    def production(x: float) -> float:
        return BETA * x / (1.0 + x**POWER)

    # Production terms of the delayed x at the nodes and half-way: entry i is at time i*h - tau.
    past = production(history)
    at_node, at_middle = [past] * (delay + 1), [past] * delay
    x, samples = history, [history]
    slope = past - GAMMA * x
    for i in range((steps - 1) * STEPS_PER_UNIT):
        k1 = slope
        k2 = at_middle[i] - GAMMA * (x + 0.5 * h * k1)
        k3 = at_middle[i] - GAMMA * (x + 0.5 * h * k2)
        k4 = at_node[i + 1] - GAMMA * (x + h * k3)
        x_next = x + h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)
        slope = at_node[i + 1] - GAMMA * x_next
        at_middle.append(production(0.5 * (x + x_next) + h / 8.0 * (k1 - slope)))
        at_node.append(production(x_next))
        x = x_next
        if (i + 1) % STEPS_PER_UNIT == 0:
            samples.append(x)
    return np.array(samples, np.float64)
