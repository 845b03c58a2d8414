"""The scan engine: a cell through time, with resets, masks, reverse, and rematerialisation by segments."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.checks import check_sequence
from tbptt.types import Carry, Cell, Params
from tbptt.windows import length


@dataclasses.dataclass(frozen=True)
class Segments:
    """Rematerialise: keep the carries between segments only, and run each segment again in the backward pass.

    Args (static): length, steps a segment; None = ceil(sqrt(T)), which keeps about 2 sqrt(T) carries instead of every
    intermediate of T steps, for one extra forward pass.

    References: Chen, Xu, Zhang, Guestrin, *Training deep nets with sublinear memory cost*, 2016, arXiv:1604.06174.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ValueError(f"Segments.length must be at least 1 step, or None for ceil(sqrt(T)); got {self.length}")


def unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Segments | None = None,
) -> tuple[Carry, Any]:
    """Runs a cell over a sequence by `jax.lax.scan`.

        for t in range(T):                                   # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue              # the step does not exist: the carry is held
            if resets[t]: carry = cell.initial_carry()       # no gradient crosses it
            carry, ys[t] = cell(params, carry, xs[t])

    (each `if` elementwise over *batch). Whatever stands in xs at masked steps, NaN included, changes nothing.

    Args:
      cell: static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is legal and returns the carry.
      resets, mask: `[T, *batch]` booleans; None = no resets, every step exists.
      reverse: static; run from the last step to the first. ys[t] still belongs to xs[t].
      remat: static; None keeps all intermediates for the backward pass, `Segments()` recomputes them.

    Returns:
      (carry, ys): the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: rank, sizes or dtypes of xs, carry, resets or mask do not fit the cell; the message names which.
      TypeError: xs, resets or mask are of the wrong dtype.
    """
    xs = jnp.asarray(xs)
    batch_shape = check_sequence(cell, params, carry, xs, resets, mask)
    T = xs.shape[0]
    if mask is not None:
        mask = jnp.asarray(mask)
        xs = jnp.where(mask[..., None], xs, 0)  # NaN padding would reach the weights' gradient as 0 * NaN
    if resets is not None:
        resets = jnp.asarray(resets)
    steps = (xs, resets, mask)
    run = functools.partial(_scan, functools.partial(cell, params), cell.initial_carry(batch_shape), reverse)
    if remat is None:
        return run(carry, steps)
    segment = min(remat.length or max(math.isqrt(max(T - 1, 0)) + 1, 1), max(T, 1))
    return _in_pieces(jax.checkpoint(run), carry, steps, segment, reverse)


def _scan(step: Any, initial: Carry, reverse: bool, carry: Carry, steps: Any) -> tuple[Carry, Any]:
    """The plain scan of one step after another."""

    def body(carry: Carry, step_t: Any) -> tuple[Carry, Any]:
        x, reset, exists = step_t
        entering = carry if reset is None else _where(reset, initial, carry)
        new, y = step(entering, x)
        if exists is None:
            return new, y
        return _where(exists, new, carry), _where(exists, y, jax.tree.map(jnp.zeros_like, y))

    return jax.lax.scan(body, carry, steps, reverse=reverse)


def _in_pieces(run: Any, carry: Carry, steps: Any, piece: int, reverse: bool) -> tuple[Carry, Any]:
    """Runs pieces of equal length as one scan, and what is left over as a shorter piece of its own."""
    n, rest = divmod(length(steps), piece)
    even = jax.tree.map(lambda a: a[: n * piece].reshape(n, piece, *a.shape[1:]), steps)
    tail = jax.tree.map(lambda a: a[n * piece :], steps)
    tail_ys = None
    if rest and reverse:
        carry, tail_ys = run(carry, tail)
    carry, ys = jax.lax.scan(run, carry, even, reverse=reverse)
    ys = jax.tree.map(lambda a: a.reshape(n * piece, *a.shape[2:]), ys)
    if not rest:
        return carry, ys
    if not reverse:
        carry, tail_ys = run(carry, tail)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, tail_ys)


def _where(condition: Bool[Array, "*batch"], chosen: Any, other: Any) -> Any:
    """Selects whole leaves `[*batch, ...]` by a condition `[*batch]`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (b.ndim - condition.ndim)), a, b)

    return jax.tree.map(select, chosen, other)
