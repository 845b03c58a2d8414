"""How much of the newest losses' gradient comes from how far back: one reverse sweep of one-step pieces."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._segment_vjp import carries_back, losses_back, moving
from tbptt.numerics import global_norm, measure, norm_dtype
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import cut, length, step_shape, total_weight


class ByLag(NamedTuple):
    """Gradients of the newest losses by lag, means per unit of their weight.

    phi:     `[lags]`, ||d L_s / d carry_{s-k}||, k = 1 .. lags, the norm of each lane by itself where that is known
    parts:   `[lags - 1]`, ||c_k||, k = 1 .. lags - 1: what step s - k contributes to the gradient
    largest: scalar, max_K ||g_K||, K = 1 .. lags: g_K = sum_{k < K} c_k is the gradient over K steps
    weight:  scalar, of the losses; 0: nothing was measured
    """

    phi: Float[Array, " lags"]
    parts: Float[Array, " parts"]
    largest: Float[Array, ""]
    weight: Float[Array, ""]


def measure_by_lag(loss_fn: LossFn, params: Params, carry: Carry, steps: Batch, lags: int) -> ByLag:
    """Takes the losses of the newest S steps back through `lags` steps, all together.

        c_0, back = vjp(loss of step s)(1)                                       # s = every one of the newest S steps
        for k in range(1, lags):
            phi[k] = norm(back);    c_k, back = vjp(carry of step s - k)(back)
        phi[lags] = norm(back)

    By the triangle inequality, TBPTT over K steps is off by at most sum_{k >= K} ||c_k|| <= M sum_{k >= K} phi_k with
    M = max_k ||c_k|| / phi_k, as far as lags were measured (Aicher et al.'s Theorem 1).

    Lanes: where every floating leaf of the carry is `[*batch, ...]`, with the batch axes of weights, mask, resets or
    inputs, phi is a mean over lanes of the norm in each. Else the carry is one vector: phi is then at most the sum of its
    lanes' norms, and the inequality holds as well, with another M.

    Args:
      carry: enters the first step.
      steps: `[lags + S - 1, *batch, ...]`; S >= 1 follows from it.
    """
    S = length(steps) - lags + 1
    pieces = cut(steps, 1)
    _, entering = jax.lax.scan(lambda c, piece: (loss_fn(params, c, piece)[1], c), carry, pieces)
    newest = jnp.arange(lags - 1, lags - 1 + S)
    batch_dims = _lane_axes(carry, steps)
    dtype = norm_dtype((params, carry))

    def at(k: Array | int) -> tuple[Carry, Batch]:
        return jax.tree.map(lambda a: a[newest - k], (entering, pieces))

    def look(cotangents: list[Array]) -> Array:
        return jnp.sum(measure(cotangents, 1 + batch_dims).norm).astype(dtype)

    def body(state: tuple[list[Array], Params, Array], k: Array):
        cotangents, total, largest = state
        part, cotangents = carries_back(loss_fn, params, *at(k), cotangents)
        total = jax.tree.map(jnp.add, total, part)
        largest = jnp.maximum(largest, global_norm(total).astype(dtype))
        return (cotangents, total, largest), (look(cotangents), global_norm(part).astype(dtype))

    total, cotangents = losses_back(loss_fn, params, *at(0))
    state = (cotangents, total, global_norm(total).astype(dtype))
    (_, _, largest), (phi, parts) = jax.lax.scan(body, state, jnp.arange(1, lags))
    weight = total_weight(jax.tree.map(lambda a: a[lags - 1 :], steps)).astype(dtype)
    down = jnp.where(weight == 0, 0, 1 / jnp.where(weight == 0, 1, weight))
    return ByLag(jnp.concatenate([look(cotangents)[None], phi]) * down, parts * down, largest * down, weight)


def _lane_axes(carry: Carry, steps: Batch) -> int:
    """The number of batch axes if all floating leaves begin with them, else 0."""
    lanes = step_shape(steps)[1:]
    return len(lanes) if all(leaf.shape[: len(lanes)] == lanes for leaf in moving(carry)) else 0
