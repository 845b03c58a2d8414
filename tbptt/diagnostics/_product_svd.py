"""Compute singular values of long matrix products, in the log domain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.diagnostics._recurrence import scaled_norm


class GradedProduct(NamedTuple):
    """A matrix u diag(exp(d)) v.

    u: `[N, N]`, orthogonal
    d: `[N]`, real or -inf
    v: `[N, N]`, with rows of norm 1 (or 0)
    """

    u: Float[Array, "N N"]
    d: Float[Array, " N"]
    v: Float[Array, "N N"]


def identity(size: int, dtype: Any) -> GradedProduct:
    """Return the identity matrix, the product of no factors."""
    eye = jnp.eye(size, dtype=dtype)
    return GradedProduct(eye, jnp.zeros((size,), dtype), eye)


def multiply(j_u: Float[Array, "N N"], product: GradedProduct) -> GradedProduct:
    """Multiply a product by one more factor J from the left, given J u.

        q r = (J u)[:, order],    J u diag(exp(d)) v = q (r diag(exp(d)) v)[order]

    The columns of J u exp(d) are ordered by decreasing length before the QR. This keeps the rows
    of v well conditioned, so every singular value keeps its relative accuracy, not only the
    largest.

    References: Stewart 1997, *On graded QR decompositions of products of matrices*, ETNA 5; the
    ordering: Tomas, Chang, Scalettar and Bai 2012, *Advancing large scale many-body QMC
    simulations on GPU accelerated multicore systems*.
    """
    log_lengths = jnp.log(scaled_norm(j_u, (0,))) + product.d
    order = jnp.argsort(-log_lengths)
    d, v = product.d[order], product.v[order]
    q, r = jnp.linalg.qr(j_u[:, order])
    # Row i is sum_j r_ij exp(d_j) v_j, scaled by its own largest nonzero term.
    logs = jnp.where(r == 0, -jnp.inf, jnp.log(jnp.abs(r)) + d)
    largest = jnp.max(logs, axis=1, keepdims=True)
    shift = jnp.where(largest == -jnp.inf, 0, largest)
    rows = (jnp.sign(r) * jnp.exp(logs - shift)) @ v
    norms = scaled_norm(rows, (1,))
    return GradedProduct(
        q, jnp.squeeze(shift, 1) + jnp.log(norms), rows / jnp.where(norms == 0, 1, norms)[:, None]
    )


def log_singular_values(product: GradedProduct, max_sweeps: int = 30) -> Float[Array, " N"]:
    """Compute the logs of the singular values of a product, the largest first; -inf is an exact 0.

    One-sided Jacobi rotations on the columns of v^T diag(exp(d)), each column stored as a
    direction b and the log of its length d. With r = exp(d_j - d_i) <= 1 and c = b_i . b_j, the
    rotation by tan(theta) = r tau makes them orthogonal:

        z = (r^2 - 1) / (2 c),    tau = sign(z) / (|z| + sqrt(r^2 + z^2))
        b_i <- cos (b_i - r^2 tau b_j),    b_j <- cos (tau b_i + b_j)    (d adds the log lengths)

    Only the ratio r appears, and it may underflow harmlessly. Sweeps stop when every |c| is a
    rounding error. One NaN makes all values NaN.

    References: Demmel and Veselic 1992, *Jacobi's method is more accurate than QR*, SIAM J.
    Matrix Anal. Appl. 13.
    """
    size = product.d.shape[0]
    even = size + size % 2  # padded by a column of length 0 to an even number
    directions = jnp.zeros((even, size), product.v.dtype).at[:size].set(product.v)
    d = jnp.full((even,), -jnp.inf, product.d.dtype).at[:size].set(product.d)
    rounds = jnp.asarray(_tournament(even))
    tolerance = jnp.finfo(d.dtype).eps * even

    def rotate(
        state: tuple[Array, Array, Array], pairs: Array
    ) -> tuple[tuple[Array, Array, Array], None]:
        b, d, worst = state
        swapped = d[pairs[:, 0]] < d[pairs[:, 1]]
        i, j = (
            jnp.where(swapped, pairs[:, 1], pairs[:, 0]),
            jnp.where(swapped, pairs[:, 0], pairs[:, 1]),
        )
        c = jnp.sum(b[i] * b[j], axis=1)
        r = jnp.where(d[j] == -jnp.inf, 0, jnp.exp(d[j] - d[i]))
        turns = jnp.abs(c) > tolerance
        z = (jnp.square(r) - 1) / (2 * jnp.where(turns, c, 1))
        tau = jnp.where(z >= 0, 1, -1) / (jnp.abs(z) + jnp.sqrt(jnp.square(r) + jnp.square(z)))
        tau = jnp.where(turns, tau, 0)
        cos = 1 / jnp.sqrt(1 + jnp.square(r * tau))
        new_i = cos[:, None] * (b[i] - (jnp.square(r) * tau)[:, None] * b[j])
        new_j = cos[:, None] * (tau[:, None] * b[i] + b[j])
        for index, new in ((i, new_i), (j, new_j)):
            lengths = scaled_norm(new, (1,))
            b = b.at[index].set(new / jnp.where(lengths == 0, 1, lengths)[:, None])
            d = d.at[index].add(jnp.where(turns, jnp.log(lengths), 0))
        return (b, d, jnp.maximum(worst, jnp.max(jnp.abs(c)))), None

    def sweep(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        b, d, _, count = state
        (b, d, worst), _ = jax.lax.scan(rotate, (b, d, jnp.zeros((), d.dtype)), rounds)
        return b, d, worst, count + 1

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        return (state[2] > tolerance) & (state[3] < max_sweeps)

    start = (directions, d, jnp.asarray(jnp.inf, d.dtype), jnp.zeros((), int))
    _, d, _, _ = jax.lax.while_loop(unfinished, sweep, start)
    return jnp.where(jnp.any(jnp.isnan(d)), jnp.nan, -jnp.sort(-d)[:size])


def _tournament(size: int) -> np.ndarray:
    """Return rounds of disjoint pairs that cover all pairs once, `[size - 1, size / 2, 2]`."""
    players, rounds = list(range(size)), []
    for _ in range(size - 1):
        rounds.append([(players[k], players[size - 1 - k]) for k in range(size // 2)])
        players = [players[0], players[-1], *players[1:-1]]
    return np.asarray(rounds)
