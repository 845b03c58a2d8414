"""Influence balancing: a linear system whose truncated gradient can have the wrong sign.

    s' = A s + theta sign,   A = I/2 + superdiagonal/2 (n = 23),   sign = +1 (10 states), -1 (13)
    loss of a step = (s'_0 - 1)^2 / 2;   steady state s_0 = -6 theta, so theta* = -1/6

A larger theta first raises s_0, through the ten near states, and later lowers it, through the
thirteen far ones.

References: Tallec and Ollivier, *Unbiased online recurrent optimization*, arXiv:1702.05043, section
5.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tbptt

N, PLUS = 23, 10
A = 0.5 * np.eye(N) + 0.5 * np.eye(N, k=1)
SIGN = np.where(np.arange(N) < PLUS, 1.0, -1.0)
STAR, START = -1 / 6, 0.5


def closed_form(longest: int) -> np.ndarray:
    """Compute D_1 .. D_longest, the derivatives ds_0/dtheta within windows of k steps.

    D_k = sum_{j < k} e_0^T A^j sign;    D_inf = e_0^T (I - A)^-1 sign = 2 (10 - 13) = -6
    """
    row, values = np.eye(N)[0], []
    for _ in range(longest):
        values.append((values[-1] if values else 0.0) + row @ SIGN)
        row = row @ A
    return np.asarray(values)


def mean_derivative(D: np.ndarray, k1: int, k2: int) -> float:
    """Return the mean derivative of the k1 losses of a window.

    mean(D_{k2-k1+1} .. D_{k2}),    D_k = 0 for k <= 0
    """
    if k2 < k1:
        return float(np.sum(D[:k2]) / k1)
    return float(np.mean(D[k2 - k1 : k2]))


def states(theta: jax.Array, s: jax.Array, batch: tbptt.Batch) -> tuple[jax.Array, jax.Array]:
    """Run the system; return (final state, s_0 after each step `[T]`)."""

    def body(s: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        s = jnp.asarray(A, s.dtype) @ s + theta * jnp.asarray(SIGN, s.dtype)
        return s, s[0]

    return jax.lax.scan(body, s, batch.inputs)


def loss_fn(theta: jax.Array, s: jax.Array, batch: tbptt.Batch) -> tuple[jax.Array, jax.Array]:
    """Compute the sum of (s_0 - 1)^2 / 2, as a `LossFn`."""
    s, values = states(theta, s, batch)
    return 0.5 * jnp.sum(jnp.square(values - 1)), s


def first_state(theta: jax.Array, s: jax.Array, batch: tbptt.Batch) -> tuple[jax.Array, jax.Array]:
    """Compute the sum of s_0, as a `LossFn` whose gradient is the derivative of s_0."""
    s, values = states(theta, s, batch)
    return jnp.sum(values), s


def steps(T: int) -> tbptt.Batch:
    """Make a batch of T steps; the system has no input."""
    nothing = jnp.zeros((T, 1))
    return tbptt.Batch(nothing, nothing)


def measured_derivative(k1: int, k2: int) -> float:
    """Measure the mean derivative of s_0 by TBPTT(k1, k2), after the first k2 steps."""
    with jax.enable_x64(True):
        estimator, theta, new = (
            tbptt.truncated_bptt(first_state, k1, k2),
            jnp.asarray(START),
            steps(k1),
        )

        def derivative(theta: jax.Array) -> jax.Array:
            memory = estimator.init(theta, jnp.ones(N), new)
            # Without inputs all past steps are equal; setting their number marks them as present.
            memory = memory._replace(n_valid=jnp.asarray(k2 - k1, jnp.int32)) if k2 > k1 else memory
            return estimator.estimate(theta, memory, new).grads

        return float(jax.jit(derivative)(theta))


def derivatives(pairs: Iterable[tuple[int, int]]) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the measured and closed-form derivative of every (k1, k2), and D_1 .. D_max(k2)."""
    pairs = list(pairs)
    D = closed_form(max(k2 for _, k2 in pairs))
    rows = []
    for k1, k2 in pairs:
        measured, exact = measured_derivative(k1, k2), mean_derivative(D, k1, k2)
        rows.append({"k1": k1, "k2": k2, "measured": measured, "closed_form": exact})
    return rows, D.tolist()


def verdict(theta: float, tolerance: float) -> str:
    """Classify the result of a run from START: diverged, converged, right_way or wrong_way."""
    if not np.isfinite(theta) or abs(theta) > 10:
        return "diverged"
    if abs(theta - STAR) < tolerance:
        return "converged"
    return "wrong_way" if abs(theta - STAR) > abs(START - STAR) else "right_way"
