"""A cell whose initial carry is a parameter."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.numerics import is_floating, select
from tbptt.types import Carry, Cell, Params, PRNGKey


class LearnedStartParams(NamedTuple):
    """cell: the parameters of the inner cell; start: its initial carry, without batch axes."""

    cell: Params
    start: Carry


class LearnedStartCarry(NamedTuple):
    """inner: the carry of the inner cell; fresh: `[*batch]`, 1 before the first step, else 0."""

    inner: Carry
    fresh: Float[Array, "*batch"]


@dataclasses.dataclass(frozen=True)
class LearnedStart:
    """Wrap a cell so that its initial carry is learned.

        if carry.fresh: carry.inner = params.start
        carry.inner, y = cell(params.cell, carry.inner, x);    carry.fresh = 0

    A sequence starts from `params.start`, and so does every step after a reset. An estimator takes
    the carry that enters a call as a constant, so the gradient of a start that is made outside of
    the loss function, `carry = broadcast(params.h0)`, would be 0 without an error.

    Args (all static):
      cell: any `Cell` with a floating carry.

    Returns:
      A cell with `LearnedStartParams` and a `LearnedStartCarry`. `init` sets `start` to the initial
      carry of the inner cell. It has no backward pass of its own: `unroll` runs it by the plain
      scan.

    Raises:
      TypeError: at `init`, if a leaf of the carry is not floating.
    """

    cell: Cell

    @property
    def input_dim(self) -> int:
        return self.cell.input_dim

    @property
    def hidden_dim(self) -> int:
        return self.cell.hidden_dim

    def init(self, key: PRNGKey) -> LearnedStartParams:
        """Draw the parameters of the inner cell; the key is consumed."""
        start = self.cell.initial_carry()
        for path, leaf in jax.tree_util.tree_leaves_with_path(start):
            if not is_floating(leaf):
                raise TypeError(
                    f"carry{jax.tree_util.keystr(path)} of {type(self.cell).__name__} must be "
                    f"floating to be learned; got {jnp.result_type(leaf)}"
                )
        return LearnedStartParams(self.cell.init(key), start)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> LearnedStartCarry:
        """Return the carry that makes the next step start from `params.start`."""
        inner = self.cell.initial_carry(batch_shape)
        dtype = jax.tree.leaves(inner)[0].dtype
        return LearnedStartCarry(inner, jnp.ones(batch_shape, dtype))

    def __call__(
        self, params: LearnedStartParams, carry: LearnedStartCarry, x: Float[Array, "*batch D"]
    ) -> tuple[LearnedStartCarry, Any]:
        """Take one step; return `(carry, y)` with the `y` of the inner cell."""
        start = jax.tree.map(
            lambda a, like: jnp.broadcast_to(a, like.shape), params.start, carry.inner
        )
        entering = select(carry.fresh > 0, start, carry.inner)
        inner, y = self.cell(params.cell, entering, x)
        return LearnedStartCarry(inner, jnp.zeros_like(carry.fresh)), y
