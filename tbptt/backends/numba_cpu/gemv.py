"""Matrix products for one or few batch rows, which read plain weights once."""

from tbptt.backends.numba_cpu.vector_width import use_wide_vectors
from tbptt.backends.numba_cpu.xla_ffi import compiled


@compiled
def gemv(a, h, w):  # type: ignore[no-untyped-def]
    """Compute a = h w. a: `[N, G]`, h: `[N, K]`, w: `[K, G]`.

    The loop takes four rows of w at once, which reads and writes `a` a quarter as often, and two
    batch rows at once, which reads `w` half as often.
    """
    use_wide_vectors()
    (N, G), K = a.shape, h.shape[1]
    pairs, fours = N - N % 2, K - K % 4
    a[:] = 0
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
def gemv_transposed(d, a, w):  # type: ignore[no-untyped-def]
    """Compute d = a w^T without a transpose. d: `[N, K]`, a: `[N, G]`, w: `[K, G]`.

    The loop takes four rows of w and two batch rows at once.
    """
    use_wide_vectors()
    (N, K), G = d.shape, a.shape[1]
    zero, pairs, fours = a.dtype.type(0), N - N % 2, K - K % 4
    for k in range(0, fours, 4):
        for n in range(0, pairs, 2):
            s0, s1, s2, s3, r0, r1, r2, r3 = zero, zero, zero, zero, zero, zero, zero, zero
            for j in range(G):
                x, y = a[n, j], a[n + 1, j]
                w0, w1, w2, w3 = w[k, j], w[k + 1, j], w[k + 2, j], w[k + 3, j]
                s0, s1, s2, s3 = s0 + x * w0, s1 + x * w1, s2 + x * w2, s3 + x * w3
                r0, r1, r2, r3 = r0 + y * w0, r1 + y * w1, r2 + y * w2, r3 + y * w3
            _put_four(d[n], k, s0, s1, s2, s3)
            _put_four(d[n + 1], k, r0, r1, r2, r3)
        for n in range(pairs, N):
            s0, s1, s2, s3 = zero, zero, zero, zero
            for j in range(G):
                x = a[n, j]
                s0, s1 = s0 + x * w[k, j], s1 + x * w[k + 1, j]
                s2, s3 = s2 + x * w[k + 2, j], s3 + x * w[k + 3, j]
            _put_four(d[n], k, s0, s1, s2, s3)
    for k in range(fours, K):
        for n in range(N):
            s0 = zero
            for j in range(G):
                s0 += a[n, j] * w[k, j]
            d[n, k] = s0


@compiled
def _put_four(d, k, s0, s1, s2, s3):  # type: ignore[no-untyped-def]
    d[k] = s0
    d[k + 1] = s1
    d[k + 2] = s2
    d[k + 3] = s3
