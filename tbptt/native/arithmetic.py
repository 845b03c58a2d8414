"""What the loops are made of: a product that reads every weight once for all lanes, and tanh."""

import math
from typing import Any, no_type_check

import numba
import numpy as np
from numba.extending import overload

from tbptt.native.frame import RELAXED, compiled

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


@overload(tanh, jit_options={"fastmath": RELAXED})
@no_type_check
def _tanh(x):  # type: ignore[no-untyped-def]
    if x == numba.types.float32:
        return _tanh_float32
    return lambda x: math.tanh(x)


@no_type_check
def _tanh_float32(x):  # type: ignore[no-untyped-def]
    y = x * x
    p = P0 + y * (P1 + y * (P2 + y * (P3 + y * (P4 + y * P5))))
    t = x * p / (Q0 + y * (Q1 + y * (Q2 + y * Q3)))
    t = P0 if x > END else t  # NaN stays NaN; exactly 1, so that no gradient reaches a gate that is held open
    return -P0 if x < -END else t


@compiled
def add_product(a, h, w):  # type: ignore[no-untyped-def]
    """Computes a += h w. a: `[N, G]`, h: `[N, K]`, w: `[K, G]`.

    Four rows of w at once, so that a is read and written a quarter as often; two lanes at once, and w half as often.
    """
    (N, G), K = a.shape, h.shape[1]
    pairs, fours = N - N % 2, K - K % 4
    for k in range(0, fours, 4):
        for n in range(0, pairs, 2):
            h0, h1, h2, h3 = h[n, k], h[n, k + 1], h[n, k + 2], h[n, k + 3]
            g0, g1, g2, g3 = h[n + 1, k], h[n + 1, k + 1], h[n + 1, k + 2], h[n + 1, k + 3]
            for j in range(G):
                w0, w1, w2, w3 = w[k, j], w[k + 1, j], w[k + 2, j], w[k + 3, j]
                a[n, j] += (h0 * w0 + h1 * w1) + (h2 * w2 + h3 * w3)
                a[n + 1, j] += (g0 * w0 + g1 * w1) + (g2 * w2 + g3 * w3)
        for n in range(pairs, N):
            h0, h1, h2, h3 = h[n, k], h[n, k + 1], h[n, k + 2], h[n, k + 3]
            for j in range(G):
                a[n, j] += (h0 * w[k, j] + h1 * w[k + 1, j]) + (h2 * w[k + 2, j] + h3 * w[k + 3, j])
    for k in range(fours, K):
        for n in range(N):
            for j in range(G):
                a[n, j] += h[n, k] * w[k, j]


@compiled
def add_product_back(d, a, w):  # type: ignore[no-untyped-def]
    """Computes d += a w^T, without a transpose. d: `[N, K]`, a: `[N, G]`, w: `[K, G]`. Four rows, two lanes at once."""
    (N, K), G = d.shape, a.shape[1]
    zero, pairs, fours = a.dtype.type(0), N - N % 2, K - K % 4
    for k in range(0, fours, 4):
        for n in range(0, pairs, 2):
            s0, s1, s2, s3, r0, r1, r2, r3 = zero, zero, zero, zero, zero, zero, zero, zero
            for j in range(G):
                x, y, w0, w1, w2, w3 = a[n, j], a[n + 1, j], w[k, j], w[k + 1, j], w[k + 2, j], w[k + 3, j]
                s0, s1, s2, s3 = s0 + x * w0, s1 + x * w1, s2 + x * w2, s3 + x * w3
                r0, r1, r2, r3 = r0 + y * w0, r1 + y * w1, r2 + y * w2, r3 + y * w3
            _add_four(d[n], k, s0, s1, s2, s3)
            _add_four(d[n + 1], k, r0, r1, r2, r3)
        for n in range(pairs, N):
            s0, s1, s2, s3 = zero, zero, zero, zero
            for j in range(G):
                x = a[n, j]
                s0, s1, s2, s3 = s0 + x * w[k, j], s1 + x * w[k + 1, j], s2 + x * w[k + 2, j], s3 + x * w[k + 3, j]
            _add_four(d[n], k, s0, s1, s2, s3)
    for k in range(fours, K):
        for n in range(N):
            s0 = zero
            for j in range(G):
                s0 += a[n, j] * w[k, j]
            d[n, k] += s0


@compiled
def _add_four(d, k, s0, s1, s2, s3):  # type: ignore[no-untyped-def]
    d[k] += s0
    d[k + 1] += s1
    d[k + 2] += s2
    d[k + 3] += s3


@compiled
def enter(h, before, start, resets, t):  # type: ignore[no-untyped-def]
    """Fills h with what enters step t: the carry before it, the start where it is reset. All `[N, H]`."""
    for n in range(h.shape[0]):
        fresh = resets.size > 0 and resets[t, n]
        for j in range(h.shape[1]):
            h[n, j] = start[n, j] if fresh else before[n, j]


@compiled
def hold(h, before, mask, t):  # type: ignore[no-untyped-def]
    """Puts the carry before step t back where the step does not exist."""
    for n in range(h.shape[0]):
        if mask.size > 0 and not mask[t, n]:
            for j in range(h.shape[1]):
                h[n, j] = before[n, j]


@compiled
def clear(d, resets, mask, t):  # type: ignore[no-untyped-def]
    """Lets no cotangent through a reset of a step that exists. d: `[N, H]`."""
    for n in range(d.shape[0]):
        exists = mask.size == 0 or mask[t, n]
        if exists and resets.size > 0 and resets[t, n]:
            for j in range(d.shape[1]):
                d[n, j] = 0
