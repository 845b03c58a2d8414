"""Windows at fixed parameters, differentiated side by side: known carries at the seams make them independent."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._accumulate import Sums
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import in_pieces, length, split, total_weight


def disjoint_batch(
    loss_fn: LossFn, k2: int, group: int, params: Params, carry: Carry, windows: Batch
) -> tuple[Carry, Sums]:
    """Sums the gradients of disjoint windows `[n, k1, ...]`, k2 <= k1, `group` at a time.

    for j in range(n): seams[j], carry = carry after the k1 - k2 steps ahead, carry after window j     # forward only
    grads = grad(params -> sum_j loss_fn(params, seams[j], last k2 steps of window j))                 # one batch
    """
    ahead = length(jax.tree.map(lambda a: a[0], windows)) - k2

    def seam(carry: Carry, window: Batch) -> tuple[Carry, Any]:
        ahead_sum = None
        if ahead:
            before, window = split(window, ahead)
            ahead_sum, carry = loss_fn(params, carry, before)
        return loss_fn(params, carry, window)[1], (carry, ahead_sum)

    def run(carry: Carry, windows: Batch) -> tuple[Carry, Any]:
        carry, (seams, ahead_sums) = jax.lax.scan(seam, carry, windows)
        counted = jax.tree.map(lambda a: a[:, ahead:], windows)
        losses, grads = _batched(lambda p, c, w: loss_fn(p, c, w)[0], params, seams, counted)
        return carry, (losses if ahead_sums is None else losses + ahead_sums, jax.vmap(total_weight)(windows), grads)

    return _grouped(run, group, params, carry, windows)


def overlapping_batch(
    loss_fn: LossFn, k1: int, k2: int, group: int, params: Params, carry: Carry, steps: Batch
) -> tuple[Carry, Sums]:
    """Sums the gradients of overlapping windows, k2 > k1: window j is `steps[j k1 : j k1 + k2]`, its last k1 steps count.

    `carry` enters step 0; returned is the one that enters the window after the last, k2 - k1 steps before the end.
    """
    old = k2 - k1
    n = (length(steps) - old) // k1
    starts = k1 * jnp.arange(n)

    def one(params: Params, carry: Carry, window: Batch) -> Float[Array, ""]:
        before, new = split(window, old)
        return loss_fn(params, loss_fn(params, carry, before)[1], new)[0]

    def seam(carry: Carry, start: Array) -> tuple[Carry, Carry]:
        return loss_fn(params, carry, _steps_from(steps, start, k1))[1], carry

    def run(carry: Carry, starts: Array) -> tuple[Carry, Any]:
        carry, seams = jax.lax.scan(seam, carry, starts)
        windows = jax.vmap(lambda start: _steps_from(steps, start, k2))(starts)
        losses, grads = _batched(one, params, seams, windows)
        new = jax.tree.map(lambda a: a[:, old:], windows)
        return carry, (losses, jax.vmap(total_weight)(new), grads)

    return _grouped(run, group, params, carry, starts)


def _batched(one: Callable[..., Any], params: Params, carries: Carry, windows: Batch) -> tuple[Array, Params]:
    """Differentiates every window by itself, and sums: as a product with ones, since XLA's sum over the first axis took a
    third of all the time of 16 windows on a CPU."""
    losses, grads = jax.vmap(jax.value_and_grad(one), in_axes=(None, 0, 0))(params, carries, windows)
    ones = functools.partial(jnp.ones, losses.shape)
    return losses, jax.tree.map(lambda g: jnp.tensordot(ones(g.dtype), g, 1, precision=jax.lax.Precision.HIGHEST), grads)


def _grouped(run: Callable[..., Any], group: int, params: Params, carry: Carry, windows: Any) -> tuple[Carry, Sums]:
    """Runs groups of windows one after another, so that memory depends on the group and not on T."""

    def add(state: tuple[Carry, Params], windows: Any) -> tuple[tuple[Carry, Params], Any]:
        carry, (losses, weights, grads) = run(state[0], windows)
        return (carry, jax.tree.map(jnp.add, state[1], grads)), (losses, weights)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (carry, grads), (losses, weights) = in_pieces(add, (carry, zeros), windows, group)
    return carry, Sums(losses, weights, grads)


def _steps_from(steps: Batch, start: Array, size: int) -> Batch:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), steps)
