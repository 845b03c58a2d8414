"""Back-propagation through loops over time with everything that can leave them taken out, the weights' gradient first."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tbptt.engine.loops import Loops, Ran
from tbptt.engine.scan import Steps, entering_carry, where
from tbptt.engine.sizes import block_steps
from tbptt.types import Carry, Params
from tbptt.windows import scan_blocks


def backprop_scan(
    loops: Loops, initial: Callable[[], Carry], keep: bool, params: Params, carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
    """Computes what `plain_scan` computes, and its gradient by the cell's own backward pass.

    JAX differentiates a scan by adding an outer product to the weights' gradient at every step and by keeping every
    intermediate. Here only the carry's cotangent rides in the reverse loop; what does not need it is computed for all
    steps of a block at once, before the loop (`linearize`) and after it (`collect`: ONE product for the weights):

        for block in reversed(blocks):
            common, factors = back.linearize(weights, xs, entering, leaving, saved)          # loops.backward: these
            for t in reversed(block):                                                        # three lines
                d, emitted[t] = back.backward(common, factors[t], d, d_ys[t])
            d_params, d_xs[block] += back.collect(params, xs, entering, leaving, factors, emitted)

    Kept for the backward pass: inputs, carries, and, if `keep`, what the cell saves (for an LSTM four gates more). Without
    it `linearize` computes the gates again: from known carries that is parallel over time, one product for a block.

    Args (static): loops; initial, makes the carry of a reset; keep.

    Blocks keep what is between the loops small enough for a cache (`block_steps`); one block needs no outer loop, and what
    is left over is a block of its own. With `ScanLoops` the backward pass can itself be differentiated; forward mode
    through a `custom_vjp` cannot, use `plain_unroll` for that.
    """
    T, length = steps.xs.shape[0], block_steps(loops.back, params, steps.xs)
    even = T // length * length
    carry, ys = _blocks(loops, initial, even // length, keep, params, carry, _cut(steps, 0, even))
    if even == T:
        return carry, ys
    carry, tail = _blocks(loops, initial, 1, keep, params, carry, _cut(steps, even, T))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, tail)


def _cut(steps: Steps, first: int, end: int) -> Steps:
    return jax.tree.map(lambda a: a[first:end], steps)


def _blocks(
    loops: Loops, initial: Callable[[], Carry], n: int, keep: bool, params: Params, carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
    run = jax.custom_vjp(lambda *args: _forward(loops, initial, n, False, *args)[0])
    run.defvjp(functools.partial(_forward, loops, initial, n, keep), functools.partial(_backward, loops, initial, n))
    return run(params, carry, steps)


def _forward(loops: Loops, initial: Any, n: int, keep: bool, params: Params, carry: Carry, steps: Steps) -> Any:
    weights, start = loops.prepare(params), initial()
    which: list[int | None] = []  # the leaf of the carries that the outputs are: it is kept once

    def block(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        carries, ys, saved = loops.forward(weights, start, carry, now, keep)
        which[:] = [next((i for i, leaf in enumerate(jax.tree.leaves(carries)) if leaf is ys), None)]
        last = jax.tree.map(lambda a: a[-1], carries)
        return last, (carry, carries, ys if which[0] is None else None, saved)

    last, (starts, carries, ys, saved) = scan_blocks(block, carry, steps, n)
    ys = ys if which[0] is None else jax.tree.leaves(carries)[which[0]]
    ys = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), ys)  # -1 fails without lanes
    if steps.mask is not None:
        ys = where(steps.mask, ys, jax.tree.map(jnp.zeros_like, ys))
    return (last, ys), (params, starts, carries, saved, steps)


def _backward(loops: Loops, initial: Callable[[], Carry], n: int, residuals: Any, cotangents: Any) -> Any:
    """Takes blocks back, the last one first."""
    params, starts, carries, saved, steps = residuals
    d_last, d_ys = cotangents
    back, start = loops.back, initial()
    weights = loops.prepare(params)

    def block(d: Carry, now: Any) -> tuple[Carry, Any]:
        block_start, leaving, kept, steps, d_ys = now
        before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), block_start, leaving)
        entering = entering_carry(before, start, steps.resets)
        d, emitted, factors = loops.backward(weights, Ran(steps, entering, leaving, kept), d, d_ys)
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
