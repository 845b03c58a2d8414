"""Gradients and roundings written out by hand: the definitions that the library is held against."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from tbptt.cells import ElmanParams


def bptt_errors(seed: int, H: int = 5, T: int = 6) -> tuple[float, float]:
    """Returns the relative errors of full BPTT for dL_T/dW of h_t = tanh(h_{t-1} W + x_t U), L_T = |h_T|^2 / 2.

    First against the sum over time, whose terms all run through the later ones,

        dL_T/dW = sum_{t <= T} outer(h_{t-1}, e_t),    e_T = h_T (1 - h_T^2),    e_{t-1} = (e_t W^T) (1 - h_{t-1}^2)

    second against central finite differences.
    """
    rng = np.random.default_rng(seed)
    W, U, xs = rng.normal(size=(H, H)) / 2, rng.normal(size=(2, H)), rng.normal(size=(T, 2))

    def loss_by_hand(W: np.ndarray) -> tuple[float, list[np.ndarray]]:
        hs = [np.zeros(H)]
        for x in xs:
            hs.append(np.tanh(hs[-1] @ W + x @ U))
        return 0.5 * float(np.sum(hs[-1] ** 2)), hs

    _, hs = loss_by_hand(W)
    hand, e = np.zeros_like(W), hs[T] * (1 - hs[T] ** 2)
    for t in range(T, 0, -1):
        hand += np.outer(hs[t - 1], e)
        e = (e @ W.T) * (1 - hs[t - 1] ** 2)
    step, differences = 1e-5, np.zeros_like(W)
    for index in np.ndindex(W.shape):
        nudge = np.zeros_like(W)
        nudge[index] = step
        differences[index] = (loss_by_hand(W + nudge)[0] - loss_by_hand(W - nudge)[0]) / (2 * step)

    with jax.enable_x64(True):
        cell = tbptt.Elman(2, H)
        params = ElmanParams(w_h=jnp.asarray(W), w_x=jnp.asarray(U), b=jnp.asarray(np.zeros(H)))

        def loss_fn(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[jax.Array, Any]:
            carry, ys = tbptt.unroll(cell, params, carry, batch.inputs)
            return 0.5 * jnp.sum(ys[-1] ** 2), carry

        estimator = tbptt.full_bptt(loss_fn)

        @jax.jit
        def gradient(params: ElmanParams) -> jax.Array:
            batch = tbptt.Batch(jnp.asarray(xs), jnp.zeros((T, 1)), jnp.ones((T,)) / T)  # total weight 1: a sum, no mean
            return estimator.estimate(params, cell.initial_carry(), batch).grads.w_h

        got = np.asarray(gradient(params))
    size = np.linalg.norm(hand)
    return float(np.linalg.norm(got - hand) / size), float(np.linalg.norm(got - differences) / size)


def overflow_in_integers(w: float, dtype: str, most: int = 200_000) -> int | None:
    """Counts the products h <- round(w h) from 1 to overflow in exact integers: h = units 2^(exponent - bits).

    Each product is off by up to half a unit, u = eps / 2 of h at most, so the rate log w by up to u. Mostly that averages
    out; not in bfloat16, where 1.01 is held as 1 + 2^-7: h = m units grows by m / 128, which is rounded to 1 unit for
    m < 192 and to 2 from there. So it takes 64 + 32 = 96 steps a doubling, not log 2 / log w = 89.07: 7.8 % more.
    None if a product rounds back to h, or it takes more than `most`.
    """
    bits, factor = round(-math.log2(float(jnp.finfo(dtype).eps))), Fraction(w)
    units, exponent = 2**bits, 0
    for steps in range(1, most + 1):
        product, before = factor * units, (units, exponent)
        while product >= 2 ** (bits + 1):
            product, exponent = product / 2, exponent + 1
        units = round(product)  # a half to the even one, as floats are rounded
        if units == 2 ** (bits + 1):
            units, exponent = 2**bits, exponent + 1
        if exponent >= int(jnp.finfo(dtype).maxexp):
            return steps
        if (units, exponent) == before:
            return None
    return None
