"""A running estimate of gradient norms by lag, and the choice of a window from it.

One reverse sweep over single steps measures the norms of the gradient of the newest losses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tbptt.estimators._common import Floating, grad_of_losses, vjp_of_carries
from tbptt.estimators.adaptive.window_choice import WindowChoice, choose_window
from tbptt.estimators.truncated import Past
from tbptt.numerics import floating_leaves, global_norm, measure, norm_dtype, select
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import length, split_windows, step_shape, total_weight


class Decay(NamedTuple):
    """Running means over estimates; phi, contributions and largest as in `ByLag`.

    estimates:  scalar, the number of estimates in the means
    non_finite: scalar, whether the newest estimate was not finite, and therefore ignored
    """

    phi: Float[Array, " lags"]
    contributions: Float[Array, " contributions"]
    largest: Float[Array, ""]
    estimates: Int[Array, ""]
    non_finite: Bool[Array, ""]


def init_decay(params: Params, carry: Carry, lags: int) -> Decay:
    """Return the state before the first estimate, with zeros for the means."""
    dtype = norm_dtype((params, carry))
    zeros = jnp.zeros((lags,), dtype)
    return Decay(
        phi=zeros,
        contributions=zeros[1:],
        largest=jnp.zeros((), dtype),
        estimates=jnp.zeros((), jnp.int32),
        non_finite=jnp.zeros((), bool),
    )


def update_decay(
    loss_fn: LossFn, params: Params, past: Past, old: Decay, lags: int, smoothing: float
) -> Decay:
    """Measure the gradient norms by lag once more, and update the running means.

    An estimate that is not finite, or whose losses have no weight, does not enter the means.
    """
    new = measure_by_lag(loss_fn, params, past.carry, past.batch, lags)
    finite = (
        jnp.all(jnp.isfinite(new.phi))
        & jnp.all(jnp.isfinite(new.contributions))
        & jnp.isfinite(new.largest)
    )
    counts = finite & (new.weight != 0)
    rate = jnp.maximum(1 - smoothing, 1 / (old.estimates.astype(new.phi.dtype) + 1))

    def averaged(a: Array, b: Array) -> Array:
        return jnp.where(counts, a + rate * (b - a), a)

    return Decay(
        phi=averaged(old.phi, new.phi),
        contributions=averaged(old.contributions, new.contributions),
        largest=averaged(old.largest, new.largest),
        estimates=old.estimates + counts,
        non_finite=~finite,
    )


def choose(
    decay: Decay, windows: tuple[int, ...], delta: float, tau: int, k1: int, level: float
) -> WindowChoice:
    """Choose a window by `choose_window`.

    Before the first estimate, and after one that was not finite, the largest window is chosen.
    """
    phi = decay.phi[:-1]
    ratios = jnp.where(phi > 0, decay.contributions / jnp.where(phi > 0, phi, 1), 0)
    scale = decay.largest / jnp.max(ratios)  # inf if no step contributes: nothing is left out
    chosen = choose_window(decay.phi, windows, delta, tau, k1=k1, level=level, scale=scale)
    is_known = ~decay.non_finite & (decay.estimates > 0)
    return select(is_known, chosen, largest_window(decay, windows))


def largest_window(decay: Decay, windows: tuple[int, ...]) -> WindowChoice:
    """Return the choice without an estimate: the largest window, and no bound."""
    dtype = decay.phi.dtype
    shape = (len(windows),)  # separate arrays: a train step donates its state, each buffer once
    return WindowChoice(
        chosen=jnp.asarray(len(windows) - 1, jnp.int32),
        beta=jnp.asarray(jnp.nan, dtype),
        interval=jnp.asarray([0, jnp.inf], dtype),
        absolute=jnp.full(shape, jnp.inf, dtype),
        relative=jnp.full(shape, jnp.inf, dtype),
        decays=jnp.zeros((), bool),
        enough=jnp.zeros((), bool),
    )


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
