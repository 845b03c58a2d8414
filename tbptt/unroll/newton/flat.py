"""The step of any cell as a map of flat carries, with resets and mask."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from tbptt.types import Carry, Cell, Params


class Problem(NamedTuple):
    """A recurrence to solve, with N batch rows and n numbers in the carry of each.

    params: the parameters of the cell
    start:  `[N, n]`, the carry before step 0
    xs:     `[T, N, D]`
    resets: `[T, N]`, or None
    mask:   `[T, N]`, or None
    """

    params: Params
    start: Float[Array, "N n"]
    xs: Float[Array, "T N D"]
    resets: Bool[Array, "T N"] | None
    mask: Bool[Array, "T N"] | None


def ravel(carry: Carry) -> Float[Array, " n"]:
    """Flatten the carry of one batch row."""
    return ravel_pytree(carry)[0]


def unravel(cell: Cell, h: Float[Array, " n"]) -> Carry:
    """Return the carry of one batch row from `ravel(carry)`."""
    return ravel_pytree(cell.initial_carry())[1](h)


def step(
    cell: Cell, params: Params, h: Array, x: Array, reset: Array | None, exists: Array | None
) -> tuple[Array, Any]:
    """Take one step of one batch row, `h' = f_t(h)`; return `(h', y)`."""
    entering = h if reset is None else jnp.where(reset, ravel(cell.initial_carry()), h)
    carry, y = cell(params, unravel(cell, entering), x)
    new = ravel(carry)
    if exists is None:
        return new, y
    return jnp.where(exists, new, h), jax.tree.map(lambda leaf: jnp.where(exists, leaf, 0), y)


def batch_step(
    cell: Cell, params: Params, h: Array, x: Array, reset: Array | None, exists: Array | None
) -> tuple[Array, Any]:
    """Take one step of all batch rows, with `h [N, n]` and `x [N, D]`; return `(h', ys)`."""
    return jax.vmap(step, (None, None, 0, 0, 0, 0))(cell, params, h, x, reset, exists)


def entering_carries(
    start: Float[Array, "N n"], hs: Float[Array, "T N n"]
) -> Float[Array, "T N n"]:
    """Return the carry that enters each step, from the carries `hs` that leave the steps."""
    return jnp.concatenate([start[None], hs])[: len(hs)]


def all_steps(
    cell: Cell, problem: Problem, before: Float[Array, "T N n"]
) -> tuple[Float[Array, "T N n"], Any]:
    """Take all steps of all batch rows, each from its own `before`; return `(images, ys)`."""
    every = jax.vmap(batch_step, (None, None, 0, 0, 0, 0))
    return every(cell, problem.params, before, problem.xs, problem.resets, problem.mask)


def all_tangents(cell: Cell, problem: Problem, before: Array, dbefore: Array) -> Array:
    """Return `J_t dbefore_t` of all steps at once, `[T, N, n]`."""
    return jax.jvp(lambda h: all_steps(cell, problem, h)[0], (before,), (dbefore,))[1]


def first_tangent(cell: Cell, problem: Problem, before: Array, start: Array) -> Array:
    """Return `J_0 start`, `[N, n]`."""
    at_0 = jax.tree.map(lambda a: a[0], (problem.xs, problem.resets, problem.mask))

    def step_0(h: Array) -> Array:
        return batch_step(cell, problem.params, h, *at_0)[0]

    return jax.jvp(step_0, (before[0],), (start,))[1]


def sequential(cell: Cell, problem: Problem) -> Float[Array, "T N n"]:
    """Take the steps one after another, by the plain scan; return the carries that leave them."""

    def body(h: Array, at_t: Any) -> tuple[Array, Array]:
        h, _ = batch_step(cell, problem.params, h, *at_t)
        return h, h

    return jax.lax.scan(body, problem.start, (problem.xs, problem.resets, problem.mask))[1]


def sequential_tangents(
    cell: Cell, problem: Problem, before: Array, start: Array, sources: Array
) -> Float[Array, "T N n"]:
    """Solve `dh_t = J_t dh_{t-1} + sources_t` from `dh = start` by a scan of `jax.jvp`."""

    def body(dh: Array, at_t: Any) -> tuple[Array, Array]:
        (h, source), inputs = at_t
        _, moved = jax.jvp(lambda h: batch_step(cell, problem.params, h, *inputs)[0], (h,), (dh,))
        return moved + source, moved + source

    def solve(start: Array, sources: Array) -> Array:
        steps = (before, sources), (problem.xs, problem.resets, problem.mask)
        return jax.lax.scan(body, start, steps)[1]

    # A linear function is its own derivative. jax before 0.10 transposes a scan only if it is the
    # derivative of another scan.
    zeros = jnp.zeros_like(start), jnp.zeros_like(sources)
    return jax.jvp(solve, zeros, (start, sources))[1]
