"""One step of any cell as a map of flat carries, resets and mask included, for all steps and lanes at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from tbptt.types import Carry, Cell, Params


class Problem(NamedTuple):
    """A recurrence to solve; N lanes, n numbers in a lane's carry.

    params: the cell's; start: `[N, n]` the carry before step 0; xs: `[T, N, D]`; resets, mask: `[T, N]` or None.
    """

    params: Params
    start: Float[Array, "N n"]
    xs: Float[Array, "T N D"]
    resets: Bool[Array, "T N"] | None
    mask: Bool[Array, "T N"] | None


def ravel(carry: Carry) -> Float[Array, " n"]:
    """Flattens one lane's carry."""
    return ravel_pytree(carry)[0]


def unravel(cell: Cell, h: Float[Array, " n"]) -> Carry:
    """Makes one lane's carry again: what `ravel` flattened."""
    return ravel_pytree(cell.initial_carry())[1](h)


def step(cell: Cell, params: Params, h: Array, x: Array, reset: Array | None, exists: Array | None) -> tuple[Array, Any]:
    """Takes one step of one lane, `h' = f_t(h)`; returns (h', y)."""
    entering = h if reset is None else jnp.where(reset, ravel(cell.initial_carry()), h)
    carry, y = cell(params, unravel(cell, entering), x)
    new = ravel(carry)
    if exists is None:
        return new, y
    return jnp.where(exists, new, h), jax.tree.map(lambda leaf: jnp.where(exists, leaf, 0), y)


def lanes(cell: Cell, params: Params, h: Array, x: Array, reset: Array | None, exists: Array | None) -> tuple[Array, Any]:
    """Takes one step of every lane: h `[N, n]`, x `[N, D]`."""
    return jax.vmap(step, (None, None, 0, 0, 0, 0))(cell, params, h, x, reset, exists)


def previous(start: Float[Array, "N n"], hs: Float[Array, "T N n"]) -> Float[Array, "T N n"]:
    """Shifts a trajectory by one step: the carry that enters each step."""
    return jnp.concatenate([start[None], hs])[: len(hs)]


def all_steps(cell: Cell, problem: Problem, before: Float[Array, "T N n"]) -> tuple[Float[Array, "T N n"], Any]:
    """Takes every step of every lane, each from its own `before`; returns (images, ys)."""
    every = jax.vmap(lanes, (None, None, 0, 0, 0, 0))
    return every(cell, problem.params, before, problem.xs, problem.resets, problem.mask)


def in_order(cell: Cell, problem: Problem) -> Float[Array, "T N n"]:
    """Takes the steps one after another: the plain scan, which needs no luck."""

    def body(h: Array, at_t: Any) -> tuple[Array, Array]:
        h, _ = lanes(cell, problem.params, h, *at_t)
        return h, h

    return jax.lax.scan(body, problem.start, (problem.xs, problem.resets, problem.mask))[1]


def tangents_in_order(cell: Cell, problem: Problem, before: Array, start: Array, sources: Array) -> Float[Array, "T N n"]:
    """Solves `dh_t = J_t dh_{t-1} + sources_t` from `dh = start`, step after step, without ever forming a J_t."""

    def body(dh: Array, at_t: Any) -> tuple[Array, Array]:
        (h, source), inputs = at_t
        _, moved = jax.jvp(lambda h: lanes(cell, problem.params, h, *inputs)[0], (h,), (dh,))
        return moved + source, moved + source

    def solve(start: Array, sources: Array) -> Array:
        steps = (before, sources), (problem.xs, problem.resets, problem.mask)
        return jax.lax.scan(body, start, steps)[1]

    # It is linear, so its own derivative; but jax before 0.10 transposes only scans that come from differentiating one.
    zeros = jnp.zeros_like(start), jnp.zeros_like(sources)
    return jax.jvp(solve, zeros, (start, sources))[1]
