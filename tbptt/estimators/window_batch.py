"""Gradients of several windows at once, as one batch with precomputed entering carries."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._common import Sums
from tbptt.numerics import sum_dtype, zeros_for_sums
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import length, scan_segments, split, total_weight


def disjoint_batch(
    loss_fn: LossFn, k2: int, group: int, params: Params, carry: Carry, windows: Batch
) -> tuple[Carry, Sums]:
    """Sum the gradients of disjoint windows, k2 <= k1, `group` windows at a time.

    for j in range(n):                                                  # forward only
        entering[j] = carry after the first k1 - k2 steps of window j
        carry = carry after window j
    grads = grad(params -> sum_j loss_fn(params, entering[j], last k2 steps of window j))  # a batch

    Args:
      windows: `[n, k1, *batch, ...]`.
      carry: the carry that enters window 0.

    Returns:
      The carry that leaves the last window, and the `Sums`.
    """
    skipped = length(jax.tree.map(lambda a: a[0], windows)) - k2

    def forward(carry: Carry, window: Batch) -> tuple[Carry, Any]:
        skipped_sum = None
        if skipped:
            forward_only, window = split(window, skipped)
            skipped_sum, carry = loss_fn(params, carry, forward_only)
        return loss_fn(params, carry, window)[1], (carry, skipped_sum)

    def run(carry: Carry, windows: Batch) -> tuple[Carry, Any]:
        carry, (entering, skipped_sums) = jax.lax.scan(forward, carry, windows)
        counted = jax.tree.map(lambda a: a[:, skipped:], windows)
        losses, grads = _batched(lambda p, c, w: loss_fn(p, c, w)[0], params, entering, counted)
        losses = losses if skipped_sums is None else losses + skipped_sums
        return carry, (losses, jax.vmap(total_weight)(windows), grads)

    return _grouped(run, group, params, carry, windows)


def overlapping_batch(
    loss_fn: LossFn, k1: int, k2: int, group: int, params: Params, carry: Carry, steps: Batch
) -> tuple[Carry, Sums]:
    """Sum the gradients of overlapping windows, k2 > k1, `group` windows at a time.

    Window j is `steps[j k1 : j k1 + k2]`; the losses of its last k1 steps count.

    Args:
      steps: `[n k1 + k2 - k1, *batch, ...]`.
      carry: the carry that enters step 0.

    Returns:
      The carry that enters the window after the last, k2 - k1 steps before the end; the `Sums`.
    """
    n_stored = k2 - k1
    n = (length(steps) - n_stored) // k1
    starts = k1 * jnp.arange(n)

    def one(params: Params, carry: Carry, window: Batch) -> Float[Array, ""]:
        replayed, new = split(window, n_stored)
        return loss_fn(params, loss_fn(params, carry, replayed)[1], new)[0]

    def forward(carry: Carry, start: Array) -> tuple[Carry, Carry]:
        return loss_fn(params, carry, _steps_from(steps, start, k1))[1], carry

    def run(carry: Carry, starts: Array) -> tuple[Carry, Any]:
        carry, entering = jax.lax.scan(forward, carry, starts)
        windows = jax.vmap(lambda start: _steps_from(steps, start, k2))(starts)
        losses, grads = _batched(one, params, entering, windows)
        new = jax.tree.map(lambda a: a[:, n_stored:], windows)
        return carry, (losses, jax.vmap(total_weight)(new), grads)

    return _grouped(run, group, params, carry, starts)


def _batched(
    one: Callable[..., Any], params: Params, carries: Carry, windows: Batch
) -> tuple[Array, Params]:
    """Return the loss of every window `[n]` and the sum of their gradients."""
    grad = jax.vmap(jax.value_and_grad(one), in_axes=(None, 0, 0))
    losses, grads = grad(params, carries, windows)
    ones = functools.partial(jnp.ones, losses.shape)

    def total(g: Array) -> Array:
        # A product with ones: on a CPU, XLA's sum over the first axis is much slower.
        return jnp.tensordot(
            ones(g.dtype),
            g,
            1,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=sum_dtype(g.dtype),
        )

    return losses.astype(sum_dtype(losses.dtype)), jax.tree.map(total, grads)


def _grouped(
    run: Callable[..., Any], group: int, params: Params, carry: Carry, windows: Any
) -> tuple[Carry, Sums]:
    """Scan over groups of windows, so that memory depends on the group and not on T."""

    def add(state: tuple[Carry, Params], windows: Any) -> tuple[tuple[Carry, Params], Any]:
        carry, (losses, weights, grads) = run(state[0], windows)
        return (carry, jax.tree.map(jnp.add, state[1], grads)), (losses, weights)

    zeros = zeros_for_sums(params)
    state, (losses, weights) = scan_segments(add, (carry, zeros), windows, group)
    carry, grads = state
    return carry, Sums(losses, weights, grads)


def _steps_from(steps: Batch, start: Array, size: int) -> Batch:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), steps)
