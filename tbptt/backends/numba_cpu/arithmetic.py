"""Elementwise operations of the compiled loops: tanh, resets and masks.

`rows` is a range `(first, end)` of batch rows.
"""

import math
from typing import Any

import numba
import numpy as np

from tbptt.backends.numba_cpu.xla_ffi import compiled, implements

# tanh(x) = x P(x^2) / Q(x^2) for |x| <= 8, and exactly 1 beyond, where it differs by at most
# 2.3e-7. Largest relative error: 1.9e-8 in exact arithmetic, 3.4e-7 as evaluated in float32. Fitted
# for this project by iteratively reweighted least squares (Lawson) on 6,000 points.
END = np.float32(8)
P0, P1, P2, P3, P4, P5 = (
    np.float32(p)
    for p in (1.0, 0.12979223, 0.0029858609, 9.8786513e-06, -1.4704198e-08, 2.3508556e-11)
)
Q0, Q1, Q2, Q3 = (np.float32(q) for q in (1.0, 0.46312538, 0.02402792, 0.0002372031))


def tanh(x: Any) -> Any:
    """Compute tanh: a vectorised rational function in float32, the system function in float64."""
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
    t = P0 if x > END else t  # NaN stays NaN; exactly 1, so that a saturated gate has gradient 0
    return -P0 if x < -END else t


@compiled
def cols(a, n, first, size):  # type: ignore[no-untyped-def]
    """Return `a[n, first : first + size]`; LLVM vectorises a loop over the slice only."""
    return a[n, first : first + size]


@compiled
def copy_entering(h, before, start, resets, t, rows):  # type: ignore[no-untyped-def]
    """Fill h with the carry that enters step t: `before`, or `start` at a reset. All `[N, H]`."""
    for n in range(rows[0], rows[1]):
        fresh = resets.size > 0 and resets[t, n]
        entering = cols(start if fresh else before, n, 0, h.shape[1])
        fill = cols(h, n, 0, h.shape[1])
        for j in range(fill.size):
            fill[j] = entering[j]


@compiled
def copy_rows(d, d_last, rows):  # type: ignore[no-untyped-def]
    """Fill d with `d_last`. Both: `[N, H]`."""
    for n in range(rows[0], rows[1]):
        for j in range(d.shape[1]):
            d[n, j] = d_last[n, j]


@compiled
def restore_masked(h, before, mask, t, rows):  # type: ignore[no-untyped-def]
    """Restore the carry before step t in rows where the step is masked."""
    for n in range(rows[0], rows[1]):
        if mask.size > 0 and not mask[t, n]:
            old, fill = cols(before, n, 0, h.shape[1]), cols(h, n, 0, h.shape[1])
            for j in range(fill.size):
                fill[j] = old[j]


@compiled
def zero_reset(d, resets, mask, t, rows):  # type: ignore[no-untyped-def]
    """Set the cotangent to 0 in rows where step t exists and was reset. d: `[N, H]`."""
    for n in range(rows[0], rows[1]):
        exists = mask.size == 0 or mask[t, n]
        if exists and resets.size > 0 and resets[t, n]:
            fill = cols(d, n, 0, d.shape[1])
            for j in range(fill.size):
                fill[j] = 0


@compiled
def add_rows(d, by, rows):  # type: ignore[no-untyped-def]
    """Add `by` to d. d: `[N, H]`; by: `[N, at least H]`."""
    for n in range(rows[0], rows[1]):
        total, more = cols(d, n, 0, d.shape[1]), cols(by, n, 0, d.shape[1])
        for j in range(total.size):
            total[j] += more[j]
