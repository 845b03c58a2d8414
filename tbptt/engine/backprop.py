"""Back-propagation through a scan with everything that can leave the loop taken out of it, the weights' gradient first."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tbptt.engine.scan import Steps, entering_carry, where
from tbptt.types import Backprop, Carry, Params
from tbptt.windows import scan_blocks


def backprop_scan(
    back: Backprop, initial: Callable[[], Carry], n: int, keep: bool, params: Params, carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
    """Computes what `plain_scan` computes, and its gradient by the cell's own backward pass.

    JAX differentiates a scan by adding an outer product to the weights' gradient at every step and by keeping every
    intermediate. Here only the carry's cotangent rides in the reverse loop; what does not need it is computed for all
    steps of a block at once, before the loop (`linearize`) and after it (`collect`: ONE product for the weights):

        for block in reversed(blocks):
            common, factors = back.linearize(weights, xs, entering, leaving, saved)
            for t in reversed(block):
                d, emitted[t] = back.backward(common, factors[t], d, d_ys[t])
            d_params, d_xs[block] += back.collect(params, xs, entering, leaving, factors, emitted)

    Kept for the backward pass: inputs, carries, and, if `keep`, what the cell saves (for an LSTM four gates more). Without
    it `linearize` computes the gates again: from known carries that is parallel over time, one product for a block.

    Args (static): back; initial, makes the carry of a reset; n, blocks (must divide T); keep.

    Blocks keep what is between the loops small enough for a cache; n = 1 is one block, without an outer loop. The
    backward pass can itself be differentiated; forward mode through a `custom_vjp` cannot, use `plain_unroll` for that.
    """
    run = jax.custom_vjp(lambda *args: _forward(back, initial, n, False, *args)[0])
    backward = functools.partial(backward_blocks, back, initial, n, functools.partial(_steps_back, back))
    run.defvjp(functools.partial(_forward, back, initial, n, keep), backward)
    return run(params, carry, steps)


def _forward(back: Backprop, initial: Any, n: int, keep: bool, params: Params, carry: Carry, steps: Steps) -> Any:
    weights, start = back.prepare(params), initial()
    which: list[int | None] = []  # found while the body is traced

    def body(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        leaving, y, saved = back.forward(weights, entering_carry(carry, start, now.resets), now.xs)
        # An output that is a leaf of the carry, as every cell's here is, need not be stacked a second time.
        which[:] = [next((i for i, leaf in enumerate(jax.tree.leaves(leaving)) if leaf is y), None)]
        carry = leaving if now.mask is None else where(now.mask, leaving, carry)
        return carry, (carry, y if which[0] is None else None, saved if keep else None)

    def block(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        last, (carries, ys, saved) = jax.lax.scan(body, carry, now._replace(xs=back.inputs(weights, now.xs)))
        return last, (carry, carries, ys, saved)

    last, (starts, carries, ys, saved) = scan_blocks(block, carry, steps, n)
    ys = ys if which[0] is None else jax.tree.leaves(carries)[which[0]]
    ys = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), ys)
    if steps.mask is not None:
        ys = where(steps.mask, ys, jax.tree.map(jnp.zeros_like, ys))
    return (last, ys), (params, starts, carries, saved, steps)


def backward_blocks(
    back: Backprop, initial: Callable[[], Carry], n: int, steps_back: Any, residuals: Any, cotangents: Any
) -> Any:
    """Takes blocks back, the last one first.

    Args (static): back, initial, n as in `backprop_scan`; steps_back, the loop over the steps of one block:
      `(common, d, (factors, d_ys, resets, mask)) -> (d, emitted)`.
    """
    params, starts, carries, saved, steps = residuals
    d_last, d_ys = cotangents
    weights, start = back.prepare(params), initial()

    def block(d: Carry, now: Any) -> tuple[Carry, Any]:
        block_start, leaving, kept, steps, d_ys = now
        before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), block_start, leaving)
        entering = entering_carry(before, start, steps.resets)
        common, factors = back.linearize(weights, steps.xs, entering, leaving, kept)
        d, emitted = steps_back(common, d, (factors, d_ys, steps.resets, steps.mask))
        return d, back.collect(params, steps.xs, entering, leaving, factors, emitted)

    def add(state: Any, now: Any) -> tuple[Any, Any]:
        d, total = state
        d, (d_params, d_xs) = block(d, now)
        return (d, jax.tree.map(jnp.add, total, d_params)), d_xs

    cut = jax.tree.map(lambda a: a.reshape(n, a.shape[0] // n, *a.shape[1:]), (steps, d_ys))
    per_block = (starts, carries, saved, *cut)
    if n == 1:
        d, (d_params, d_xs) = block(d_last, jax.tree.map(lambda a: a[0], per_block))
    else:
        zeros = jax.tree.map(jnp.zeros_like, params)
        (d, d_params), d_xs = jax.lax.scan(add, (d_last, zeros), per_block, reverse=True)
        d_xs = d_xs.reshape(steps.xs.shape)
    return d_params, d, Steps(d_xs, None, None)


def _steps_back(back: Backprop, common: Any, d: Carry, now: Any) -> tuple[Carry, Any]:
    """The loop over the steps of a block, as a scan."""

    def body(d: Carry, now: Any) -> tuple[Carry, Any]:
        return _step_back(functools.partial(back.backward, common), d, *now)

    return jax.lax.scan(body, d, now, reverse=True)


def _step_back(backward: Any, d: Carry, factors: Any, d_y: Any, reset: Any, exists: Any) -> tuple[Carry, Any]:
    """One step of the reverse loop: a step that does not exist hands its cotangent on, a reset lets none through."""
    zero = jax.tree.map(jnp.zeros_like, d)
    if exists is None:
        d_entering, emitted = backward(factors, d, d_y)
        return d_entering if reset is None else where(reset, zero, d_entering), emitted
    d_y = where(exists, d_y, jax.tree.map(jnp.zeros_like, d_y))
    d_entering, emitted = backward(factors, where(exists, d, zero), d_y)
    d_before = d_entering if reset is None else where(reset, zero, d_entering)
    return where(exists, d_before, d), emitted
