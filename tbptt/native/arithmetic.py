"""What the loops are made of beside products: tanh, resets, masks. lanes, units: from the first to before the last."""

import math
from typing import Any

import numba
import numpy as np

from tbptt.native.frame import compiled, implements

# tanh(x) = x P(x^2) / Q(x^2) for |x| <= 8, where it is 1 within 2.3e-7, and exactly 1 beyond. Least relative error: 1.9e-8
# in exact arithmetic, 3.4e-7 as evaluated in float32. Fitted for this project: least squares on 6,000 points, reweighted
# until the largest error was least (Lawson's iteration).
END = np.float32(8)
P0, P1, P2, P3, P4, P5 = (
    np.float32(p) for p in (1.0, 0.12979223, 0.0029858609, 9.8786513e-06, -1.4704198e-08, 2.3508556e-11)
)
Q0, Q1, Q2, Q3 = (np.float32(q) for q in (1.0, 0.46312538, 0.02402792, 0.0002372031))


def tanh(x: Any) -> Any:
    """Computes tanh: in float32 so that it fills vectors, which the system's does not; in float64 by the system's."""
    raise NotImplementedError("only in compiled loops")


@implements(tanh)
def _tanh(x):  # type: ignore[no-untyped-def]
    if x == numba.types.float32:
        return _tanh_float32
    return lambda x: math.tanh(x)


def _tanh_float32(x):  # type: ignore[no-untyped-def]
    y = x * x
    p = P0 + y * (P1 + y * (P2 + y * (P3 + y * (P4 + y * P5))))
    t = x * p / (Q0 + y * (Q1 + y * (Q2 + y * Q3)))
    t = P0 if x > END else t  # NaN stays NaN; exactly 1, so that no gradient reaches a gate that is held open
    return -P0 if x < -END else t


@compiled
def own(a, n, units, gate):  # type: ignore[no-untyped-def]
    """Returns the units' part of row n of a, from where a gate begins: by itself, as a loop over a part does not fill
    vectors, for numba asks of every index whether it is negative."""
    return a[n, gate + units[0] : gate + units[1]]


@compiled
def enter(h, before, start, resets, t, lanes, units):  # type: ignore[no-untyped-def]
    """Fills h with what enters step t: the carry before it, the start where it is reset. All `[N, H]`."""
    for n in range(lanes[0], lanes[1]):
        fresh = resets.size > 0 and resets[t, n]
        entering, fill = own(start if fresh else before, n, units, 0), own(h, n, units, 0)
        for j in range(fill.size):
            fill[j] = entering[j]


@compiled
def begin(d, d_last, lanes, place):  # type: ignore[no-untyped-def]
    """Fills d with the cotangent of what left the last step; for all units, so not where a thread comes later."""
    who, _, address = place
    if who == 0 or address == 0:
        for n in range(lanes[0], lanes[1]):
            for j in range(d.shape[1]):
                d[n, j] = d_last[n, j]


@compiled
def hold(h, before, mask, t, lanes, units):  # type: ignore[no-untyped-def]
    """Puts the carry before step t back where the step does not exist."""
    for n in range(lanes[0], lanes[1]):
        if mask.size > 0 and not mask[t, n]:
            put_back, fill = own(before, n, units, 0), own(h, n, units, 0)
            for j in range(fill.size):
                fill[j] = put_back[j]


@compiled
def clear(d, resets, mask, t, lanes, units):  # type: ignore[no-untyped-def]
    """Lets no cotangent through a reset of a step that exists. d: `[N, H]`."""
    for n in range(lanes[0], lanes[1]):
        exists = mask.size == 0 or mask[t, n]
        if exists and resets.size > 0 and resets[t, n]:
            fill = own(d, n, units, 0)
            for j in range(fill.size):
                fill[j] = 0


@compiled
def increase(d, by, lanes, units):  # type: ignore[no-untyped-def]
    """Adds to d. d: `[N, H]`; by: `[N, at least H]`."""
    for n in range(lanes[0], lanes[1]):
        total, more = own(d, n, units, 0), own(by, n, units, 0)
        for j in range(total.size):
            total[j] += more[j]
