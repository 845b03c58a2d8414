"""The unroll with a hand-written backward pass, in blocks of steps, for any backend."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tbptt.cells.base import CellVJP, LayeredCell
from tbptt.numerics import cast_like, select, zeros_for_sums
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.autodiff_vjp import AutodiffVJP, cell_vjp_of
from tbptt.unroll.block_size import BLOCK_BYTES, block_length, max_saved_steps
from tbptt.unroll.remat import (
    CarriesOnly,
    MemoryBudget,
    Remat,
    Segments,
    all_floating,
    in_segments,
    resolve_budget,
)
from tbptt.unroll.scan import (
    Backend,
    Residuals,
    Steps,
    entering_carry,
    leaf_index,
    plain_scan,
    reverse_time,
)
from tbptt.unroll.validate import validated_steps
from tbptt.windows import split

# (cell, its backward pass, the carry that enters the layer) -> the loops that run the layer
BackendFn = Callable[[Cell, CellVJP, Carry], Backend]


def blocked_unroll(
    backend_fn: BackendFn,
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Any,
    resets: Any,
    mask: Any,
    reverse: bool,
    remat: Remat | MemoryBudget | None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Carry, Any]:
    """Run a cell over a sequence with the loops of a backend.

    `unroll` and the unroll functions of the backends call it. JAX differentiates a scan by adding
    an outer product to the weight gradient at every step. Here the reverse loop carries only the
    cotangent of the carry. The rest is computed for all steps of a block at once, before the loop
    (`linearize`) and after it (`collect`: one matrix product for the weights):

        for block in reversed(blocks):
            # backend.backward computes these three lines
            common, factors = cell_vjp.linearize(weights, xs, entering, leaving, saved)
            for t in reversed(block):
                d, emitted[t] = cell_vjp.backward(common, factors[t], d, d_ys[t])

            grads, d_xs[block] = cell_vjp.collect(params, xs, entering, leaving, factors, emitted)
            d_params += grads

    Residuals are the inputs, the carries and the saved intermediates of the cell (four gates for an
    LSTM). Under `CarriesOnly`, and by default if they would exceed `block_size.SAVED_BYTES`,
    `linearize` recomputes the latter in one product per block. A stack runs layer by layer.
    """
    steps = validated_steps(cell, params, carry, xs, resets, mask)
    T = steps.xs.shape[0]
    remat = resolve_budget(cell, params, steps.xs, remat)
    if isinstance(remat, Segments):

        def segment(carry: Carry, steps: Steps) -> tuple[Carry, Any]:
            return blocked_unroll(
                backend_fn,
                cell,
                params,
                carry,
                *steps,
                reverse=False,
                remat=None,
                block_bytes=block_bytes,
            )

        carry, ys = in_segments(segment, remat, T)(carry, reverse_time(steps) if reverse else steps)
        return carry, reverse_time(ys) if reverse else ys

    steps = reverse_time(steps) if reverse else steps
    if isinstance(cell, LayeredCell):
        carries, ys = [], steps.xs
        for layer, p, c in zip(cell.cells, params, carry, strict=True):
            below = steps._replace(xs=ys)
            run_layer = _layer_fn(backend_fn, layer, remat, block_bytes, p, c, below)
            c, ys = run_layer(p, c, below)
            carries.append(c)
        carry = tuple(carries)
    else:
        run_layer = _layer_fn(backend_fn, cell, remat, block_bytes, params, carry, steps)
        carry, ys = run_layer(params, carry, steps)
    return carry, reverse_time(ys) if reverse else ys


def _layer_fn(
    backend_fn: BackendFn,
    layer: Cell,
    remat: CarriesOnly | None,
    block_bytes: int,
    params: Params,
    carry: Carry,
    steps: Steps,
) -> Callable[[Params, Carry, Steps], tuple[Carry, Any]]:
    """Return the function `(params, carry, steps) -> (carry, ys)` that runs one layer.

    It is the plain scan where blocks bring no advantage, else equal blocks and the remainder. The
    choice depends on the shapes and dtypes of params, carry and steps.
    """
    if isinstance(layer, LayeredCell):  # a stack within a stack
        return lambda p, c, s: blocked_unroll(
            backend_fn, layer, p, c, *s, reverse=False, remat=remat, block_bytes=block_bytes
        )
    T, cell_vjp, recompute = steps.xs.shape[0], cell_vjp_of(layer), isinstance(remat, CarriesOnly)
    make_initial = functools.partial(layer.initial_carry, steps.xs.shape[1:-1])
    if recompute and not all_floating((params, carry)):
        raise ValueError(
            "remat=CarriesOnly() needs floating leaves in params and carry; got an integer leaf in "
            f"those of {type(layer).__name__}. Use Segments(length), or no remat"
        )
    # One step has no loop to move work out of, and by `plain_scan` it supports forward mode. For a
    # cell without a hand-written backward pass, recomputing a step costs more than keeping the
    # residuals of JAX.
    if (
        T <= 1
        or not all_floating((params, carry))
        or (isinstance(cell_vjp, AutodiffVJP) and not recompute)
    ):
        return lambda p, c, s: plain_scan(functools.partial(layer, p), make_initial(), c, s)
    backend = backend_fn(layer, cell_vjp, carry)
    save = not recompute and T < max_saved_steps(cell_vjp, params, carry, steps.xs[0])
    length = block_length(cell_vjp, params, steps.xs, block_bytes)
    even = T // length * length
    blocks = _blocks(backend, make_initial, even // length, save)
    if even == T:
        return blocks
    tail_block = _blocks(backend, make_initial, 1, save)

    def blocks_and_tail(params: Params, carry: Carry, steps: Steps) -> tuple[Carry, Any]:
        most, tail = split(steps, even)
        carry, ys = blocks(params, carry, most)
        carry, tail_ys = tail_block(params, carry, tail)
        return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, tail_ys)

    return blocks_and_tail


def _blocks(
    backend: Backend, make_initial: Callable[[], Carry], n: int, save: bool
) -> Callable[..., tuple[Carry, Any]]:
    """Return a differentiable `(params, carry, steps) -> (carry, ys)` of n equal blocks."""
    run = jax.custom_vjp(lambda *args: _forward(backend, make_initial, n, False, *args)[0])
    run.defvjp(
        functools.partial(_forward, backend, make_initial, n, save),
        functools.partial(_backward, backend, make_initial, n),
    )
    return run


def _forward(
    backend: Backend,
    make_initial: Callable[[], Carry],
    n: int,
    save: bool,
    params: Params,
    carry: Carry,
    steps: Steps,
) -> Any:
    """Run n blocks; return `((last carry, ys), residuals)`, with saved intermediates if `save`."""
    weights, initial = backend.prepare(params), make_initial()
    output_leaf: list[int | None] = []  # the leaf of the carries that equals the outputs

    def stacked(carries: Carry, ys: Any, saved: Any) -> tuple[Any, Any, Any, Any]:
        output_leaf[:] = [leaf_index(carries, ys)]
        return (
            jax.tree.map(lambda a: a[-1], carries),
            carries,
            ys if output_leaf[0] is None else None,
            saved,
        )

    if n == 1:
        last, *out = stacked(*backend.forward(weights, initial, carry, steps, save))
        starts, carries, ys, saved = jax.tree.map(lambda a: a[None], (carry, *out))
    else:

        def block(carry: Carry, now: Steps) -> tuple[Carry, Any]:
            last, *out = stacked(*backend.forward(weights, initial, carry, now, save))
            return last, (carry, *out)

        last, (starts, carries, ys, saved) = jax.lax.scan(block, carry, _to_blocks(steps, n))
    ys = ys if output_leaf[0] is None else jax.tree.leaves(carries)[output_leaf[0]]
    # -1 fails if an axis is empty.
    ys = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), ys)
    if steps.mask is not None:
        ys = select(steps.mask, ys, jax.tree.map(jnp.zeros_like, ys))
    return (last, ys), (params, starts, carries, saved, steps)


def _backward(
    backend: Backend, make_initial: Callable[[], Carry], n: int, residuals: Any, cotangents: Any
) -> Any:
    """Pull the cotangents of `(last carry, ys)` back; return those of `(params, carry, steps)`."""
    params, starts, carries, saved, steps = residuals
    d_last, d_ys = cotangents
    cell_vjp, initial, weights = backend.cell_vjp, make_initial(), backend.prepare(params)

    def block(d: Carry, now: Any) -> tuple[Carry, Any]:
        block_start, leaving, saved, steps, d_ys = now
        before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), block_start, leaving)
        entering = entering_carry(before, initial, steps.resets)
        d, emitted, factors = backend.backward(
            weights, Residuals(steps, entering, leaving, saved), d, d_ys
        )
        return d, cell_vjp.collect(params, steps.xs, entering, leaving, factors, emitted)

    def add(state: Any, now: Any) -> tuple[Any, Any]:
        d, total = state
        d, (d_params, d_xs) = block(d, now)
        return (d, jax.tree.map(jnp.add, total, d_params)), d_xs

    per_block = (starts, carries, saved, _to_blocks(steps, n), _to_blocks(d_ys, n))
    if n == 1:
        d, (d_params, d_xs) = block(d_last, jax.tree.map(lambda a: a[0], per_block))
    else:
        (d, d_params), d_xs = jax.lax.scan(
            add, (d_last, zeros_for_sums(params)), per_block, reverse=True
        )
        d_params = cast_like(d_params, params)
        d_xs = d_xs.reshape(steps.xs.shape)
    return d_params, d, Steps(d_xs, None, None)


def _to_blocks(tree: Any, n: int) -> Any:
    """Reshape every leaf `[T, ...]` to n blocks `[n, T // n, ...]`."""
    return jax.tree.map(lambda a: a.reshape(n, a.shape[0] // n, *a.shape[1:]), tree)
