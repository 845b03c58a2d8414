"""Compute gradients and roundings explicitly, as references for the library."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from tbptt.cells import ElmanParams


def bptt_errors(seed: int, H: int = 5, T: int = 6) -> tuple[float, float]:
    """Return the errors of full BPTT for h_t = tanh(h_{t-1} W + x_t U), L_T = |h_T|^2 / 2.

    The first relative error of dL_T/dW is that to the sum over time,

        dL_T/dW = sum_{t <= T} outer(h_{t-1}, e_t)
        e_T = h_T (1 - h_T^2),    e_{t-1} = (e_t W^T) (1 - h_{t-1}^2)

    and the second relative to central finite differences.
    """
    rng = np.random.default_rng(seed)
    W, U, xs = rng.normal(size=(H, H)) / 2, rng.normal(size=(2, H)), rng.normal(size=(T, 2))

    def loss_of(W: np.ndarray) -> tuple[float, list[np.ndarray]]:
        hs = [np.zeros(H)]
        for x in xs:
            hs.append(np.tanh(hs[-1] @ W + x @ U))
        return 0.5 * float(np.sum(hs[-1] ** 2)), hs

    _, hs = loss_of(W)
    explicit, e = np.zeros_like(W), hs[T] * (1 - hs[T] ** 2)
    for t in range(T, 0, -1):
        explicit += np.outer(hs[t - 1], e)
        e = (e @ W.T) * (1 - hs[t - 1] ** 2)
    step, differences = 1e-5, np.zeros_like(W)
    for index in np.ndindex(W.shape):
        change = np.zeros_like(W)
        change[index] = step
        differences[index] = (loss_of(W + change)[0] - loss_of(W - change)[0]) / (2 * step)

    with jax.enable_x64(True):
        cell = tbptt.Elman(2, H)
        params = ElmanParams(w_h=jnp.asarray(W), w_x=jnp.asarray(U), b=jnp.asarray(np.zeros(H)))

        def loss_fn(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[jax.Array, Any]:
            carry, ys = tbptt.unroll(cell, params, carry, batch.inputs)
            return 0.5 * jnp.sum(ys[-1] ** 2), carry

        estimator = tbptt.full_bptt(loss_fn)

        @jax.jit
        def gradient(params: ElmanParams) -> jax.Array:
            # Total weight 1, so no mean.
            batch = tbptt.Batch(jnp.asarray(xs), jnp.zeros((T, 1)), jnp.ones((T,)) / T)
            return estimator.estimate(params, cell.initial_carry(), batch).grads.w_h

        got = np.asarray(gradient(params))
    size = np.linalg.norm(explicit)
    return float(np.linalg.norm(got - explicit) / size), float(
        np.linalg.norm(got - differences) / size
    )


def overflow_in_integers(w: float, dtype: str, most: int = 200_000) -> int | None:
    """Count the products h <- round(w h) from 1 to overflow, in exact integer arithmetic.

    The error of each product is at most half a unit, u = eps / 2 relative to h, so that of the rate
    log w is at most u. These errors mostly average out, but not in bfloat16, where 1.01 is rounded
    to 1 + 2^-7. There h = m units grows by m / 128 units, which is rounded to 1 unit for m < 192
    and to 2 units from there on. A doubling thus takes 64 + 32 = 96 steps instead of log 2 / log w
    = 89.07, 7.8 % more.

    Returns:
      The number of products; None if a product rounds back to h, or more than `most` are needed.
    """
    bits, factor = round(-math.log2(float(jnp.finfo(dtype).eps))), Fraction(w)
    units, exponent = 2**bits, 0
    for steps in range(1, most + 1):
        product, before = factor * units, (units, exponent)
        while product >= 2 ** (bits + 1):
            product, exponent = product / 2, exponent + 1
        units = round(product)  # half to even, as floats are rounded
        if units == 2 ** (bits + 1):
            units, exponent = 2**bits, exponent + 1
        if exponent >= int(jnp.finfo(dtype).maxexp):
            return steps
        if (units, exponent) == before:
            return None
    return None
