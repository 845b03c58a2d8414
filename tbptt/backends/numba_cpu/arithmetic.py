"""Elementwise parts of the compiled loops: tanh, resets and masks. `rows` is a range of batch rows `(first, end)`."""

import math
from typing import Any

import numba
import numpy as np

from tbptt.backends.numba_cpu.xla_ffi import compiled, implements

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
def own(a, n, first, size):  # type: ignore[no-untyped-def]
    """Return `a[n, first : first + size]`; a loop over the slice is vectorised, a loop over part of a row is not."""
    return a[n, first : first + size]


@compiled
def enter(h, before, start, resets, t, rows):  # type: ignore[no-untyped-def]
    """Fill h with the carry that enters step t: `before`, or `start` where the step is reset. All `[N, H]`."""
    for n in range(rows[0], rows[1]):
        fresh = resets.size > 0 and resets[t, n]
        entering, fill = own(start if fresh else before, n, 0, h.shape[1]), own(h, n, 0, h.shape[1])
        for j in range(fill.size):
            fill[j] = entering[j]


@compiled
def begin(d, d_last, rows):  # type: ignore[no-untyped-def]
    """Fill d with the cotangent of the carry that left the last step."""
    for n in range(rows[0], rows[1]):
        for j in range(d.shape[1]):
            d[n, j] = d_last[n, j]


@compiled
def hold(h, before, mask, t, rows):  # type: ignore[no-untyped-def]
    """Restore the carry before step t where the step does not exist."""
    for n in range(rows[0], rows[1]):
        if mask.size > 0 and not mask[t, n]:
            put_back, fill = own(before, n, 0, h.shape[1]), own(h, n, 0, h.shape[1])
            for j in range(fill.size):
                fill[j] = put_back[j]


@compiled
def clear(d, resets, mask, t, rows):  # type: ignore[no-untyped-def]
    """Set the cotangent to 0 where a step that exists was reset. d: `[N, H]`."""
    for n in range(rows[0], rows[1]):
        exists = mask.size == 0 or mask[t, n]
        if exists and resets.size > 0 and resets[t, n]:
            fill = own(d, n, 0, d.shape[1])
            for j in range(fill.size):
                fill[j] = 0


@compiled
def increase(d, by, rows):  # type: ignore[no-untyped-def]
    """Add `by` to d. d: `[N, H]`; by: `[N, at least H]`."""
    for n in range(rows[0], rows[1]):
        total, more = own(d, n, 0, d.shape[1]), own(by, n, 0, d.shape[1])
        for j in range(total.size):
            total[j] += more[j]
