"""Norms of the gradient of the newest losses by lag, from one reverse sweep over single steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._segment_vjp import Floating, grad_of_losses, vjp_of_carries
from tbptt.numerics import floating_leaves, global_norm, measure, norm_dtype
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import length, split_windows, step_shape, total_weight


class ByLag(NamedTuple):
    """Gradient norms of the newest losses by lag, divided by the weight of these losses.

    phi:     `[lags]`, ||d L_s / d carry_{s-k}||, k = 1 .. lags, averaged over batch rows where the
      carry has them
    contributions: `[lags - 1]`, ||c_k||, k = 1 .. lags - 1: c_k is what step s - k contributes to
      the gradient
    largest: scalar, max_K ||g_K||, K = 1 .. lags, with g_K = sum_{k < K} c_k, the gradient over K
      steps
    weight:  scalar, the total weight of the losses; 0 = there was nothing to measure
    """

    phi: Float[Array, " lags"]
    contributions: Float[Array, " contributions"]
    largest: Float[Array, ""]
    weight: Float[Array, ""]


def measure_by_lag(loss_fn: LossFn, params: Params, carry: Carry, steps: Batch, lags: int) -> ByLag:
    """Back-propagate the losses of the newest S steps through `lags` steps, as one batch.

        c_0, d_carry = vjp(loss of step s)(1)                            # s = each of the S newest
        for k in range(1, lags):
            phi[k] = norm(d_carry)
            c_k, d_carry = vjp(carry of step s - k)(d_carry)
        phi[lags] = norm(d_carry)

    By the triangle inequality, the error of TBPTT over K steps is at most
    sum_{k >= K} ||c_k|| <= M sum_{k >= K} phi_k with M = max_k ||c_k|| / phi_k, over the lags that
    are measured (Theorem 1 of Aicher et al.).

    If every floating leaf of the carry is `[*batch, ...]`, with the batch axes of weights, mask,
    resets or inputs, then phi is a mean over batch rows of the norm of each row. Otherwise the
    carry is one vector, and phi is at most the sum of the norms of the rows; the inequality holds
    with another M.

    Args:
      carry: the carry that enters the first step.
      steps: `[lags + S - 1, *batch, ...]`, which determines S >= 1.
      lags: static; the number of lags to measure.
    """
    S = length(steps) - lags + 1
    single_steps = split_windows(steps, 1)
    _, entering = jax.lax.scan(
        lambda c, step: (loss_fn(params, c, step)[1], c), carry, single_steps
    )
    newest = jnp.arange(lags - 1, lags - 1 + S)
    batch_dims = _batch_dims(carry, steps)
    dtype = norm_dtype((params, carry))

    def at_lag(k: Array | int) -> tuple[Carry, Batch]:
        return jax.tree.map(lambda a: a[newest - k], (entering, single_steps))

    def summed_norm(cotangents: Floating) -> Array:
        return jnp.sum(measure(cotangents, 1 + batch_dims).norm).astype(dtype)

    def body(state: tuple[Floating, Params, Array], k: Array):
        cotangents, total, largest = state
        c_k, cotangents = vjp_of_carries(loss_fn, params, *at_lag(k), cotangents)
        total = jax.tree.map(jnp.add, total, c_k)
        largest = jnp.maximum(largest, global_norm(total).astype(dtype))
        norms = summed_norm(cotangents), global_norm(c_k).astype(dtype)
        return (cotangents, total, largest), norms

    total, cotangents = grad_of_losses(loss_fn, params, *at_lag(0))
    state = (cotangents, total, global_norm(total).astype(dtype))
    (_, _, largest), (phi, contributions) = jax.lax.scan(body, state, jnp.arange(1, lags))
    weight = total_weight(jax.tree.map(lambda a: a[lags - 1 :], steps)).astype(dtype)
    scale = jnp.where(weight == 0, 0, 1 / jnp.where(weight == 0, 1, weight))
    phi = jnp.concatenate([summed_norm(cotangents)[None], phi])
    return ByLag(phi * scale, contributions * scale, largest * scale, weight)


def _batch_dims(carry: Carry, steps: Batch) -> int:
    """Return the number of batch axes if all floating leaves begin with them, else 0."""
    batch_shape = step_shape(steps)[1:]
    n = len(batch_shape)
    return n if all(leaf.shape[:n] == batch_shape for leaf in floating_leaves(carry)) else 0
