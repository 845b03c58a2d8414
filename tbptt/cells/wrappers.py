"""Cells made of other cells: stacked, clipped, with a learned start, with recorded carries."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.cells.base import input_projection, recurrent_step
from tbptt.numerics import check_max_norm, clip_tree, is_floating, select
from tbptt.types import Carry, Cell, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Stack:
    """Several layers, each of which takes the output of the layer below as its input.

        for l, cell in enumerate(cells): carry[l], x = cell(params[l], carry[l], x)

    Params and carry are tuples with one entry per layer, the first layer first.

    Args (static):
      cells: a tuple (or list) of cells with `cells[l].hidden_dim == cells[l + 1].input_dim`.

    Returns:
      A cell: `init(key) -> params`, `initial_carry(batch_shape) -> carry`, and
      `cell(params, carry, x) -> (carry, y)` with `x [*batch, D]`, where D is `cells[0].input_dim`,
      and `y [*batch, H]`, where H is `cells[-1].hidden_dim`.

    Raises:
      ValueError: `cells` is empty or no tuple or list, or the sizes of two neighbours differ.

    Example:
      >>> import jax, jax.numpy as jnp, tbptt
      >>> cell = tbptt.Stack((tbptt.LSTM(2, 8), tbptt.GRU(8, 5)))
      >>> params = cell.init(jax.random.key(0))
      >>> carry, ys = tbptt.unroll(cell, params, cell.initial_carry((4,)), jnp.ones((10, 4, 2)))
      >>> ys.shape, carry[0].h.shape, carry[1].h.shape
      ((10, 4, 5), (4, 8), (4, 5))
    """

    cells: Sequence[Cell]

    def __post_init__(self) -> None:
        if isinstance(self.cells, list):  # not hashable, as static arguments must be
            object.__setattr__(self, "cells", tuple(self.cells))
        if not isinstance(self.cells, tuple) or not self.cells:
            raise ValueError(f"Stack.cells must be a non-empty tuple of cells; got {self.cells!r}")
        for layer, (below, above) in enumerate(zip(self.cells[:-1], self.cells[1:], strict=True)):
            if below.hidden_dim != above.input_dim:
                raise ValueError(
                    f"Stack.cells[{layer}] has hidden_dim={below.hidden_dim}, but "
                    f"cells[{layer + 1}] has input_dim={above.input_dim}; they must be equal"
                )

    @property
    def input_dim(self) -> int:
        return self.cells[0].input_dim

    @property
    def hidden_dim(self) -> int:
        return self.cells[-1].hidden_dim

    def init(self, key: PRNGKey) -> tuple[Any, ...]:
        """Draw the parameters of every layer; the key is consumed."""
        keys = jax.random.split(key, len(self.cells))
        return tuple(cell.init(k) for cell, k in zip(self.cells, keys, strict=True))

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple[Any, ...]:
        """Return the initial carry of every layer."""
        return tuple(cell.initial_carry(batch_shape) for cell in self.cells)

    def inputs(self, params: tuple[Any, ...], xs: Float[Array, "*time_batch D"]) -> Any:
        """Compute the input projection of the first layer, the only one that needs no carry."""
        return input_projection(self.cells[0], params[0], xs)

    def recur(
        self, params: tuple[Any, ...], carry: tuple[Any, ...], z: Any
    ) -> tuple[tuple[Any, ...], Any]:
        """Take one step through all layers, from the input projection of the first one."""
        first, y = recurrent_step(self.cells[0], params[0], carry[0], z)
        carries = [first]
        for cell, p, c in zip(self.cells[1:], params[1:], carry[1:], strict=True):
            c, y = cell(p, c, y)
            carries.append(c)
        return tuple(carries), y

    def __call__(
        self, params: tuple[Any, ...], carry: tuple[Any, ...], x: Float[Array, "*batch D"]
    ) -> tuple[tuple[Any, ...], Any]:
        """Take one step through all layers; `y [*batch, H]` is the output of the last one."""
        return self.recur(params, carry, self.inputs(params, x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def clip_cotangent(tree: Any, max_norm: float | int, batch_dims: int = 0) -> Any:
    """Return a tree unchanged; clip the norm of its cotangent for each batch element.

        forward:   tree
        backward:  d_b  ->  d_b min(1, max_norm / |d_b|)    for each batch element b

    |d_b| is the norm over all leaves together, computed without overflow. The cotangent of an
    element that contains inf or NaN is left unchanged, so that non-finite gradients can be detected
    later. Forward-mode differentiation (`jax.jvp`) raises an error: no linear map has a clipped
    adjoint.

    Args:
      tree: a pytree with leaves `[*batch, ...]`; integer leaves are not clipped.
      max_norm: the bound; static.
      batch_dims: the number of leading batch axes; static.

    Returns:
      `tree`.
    """
    check_max_norm("clip_cotangent", max_norm)
    return tree


def _forward(tree: Any, max_norm: float | int, batch_dims: int) -> tuple[Any, None]:
    return clip_cotangent(tree, max_norm, batch_dims), None


def _backward(max_norm: float | int, batch_dims: int, _: None, cotangent: Any) -> tuple[Any]:
    return (clip_tree(cotangent, max_norm, batch_dims)[0],)


clip_cotangent.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Wrapper:
    """Sizes, parameters and initial carry of an inner cell, for cells that change its step."""

    cell: Cell

    @property
    def input_dim(self) -> int:
        return self.cell.input_dim

    @property
    def hidden_dim(self) -> int:
        return self.cell.hidden_dim

    def init(self, key: PRNGKey) -> Params:
        """Draw the parameters of the inner cell; the key is consumed."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Return the initial carry of the inner cell."""
        return self.cell.initial_carry(batch_shape)


@dataclasses.dataclass(frozen=True)
class ClippedCell(_Wrapper):
    """A cell with the gradient of its carry clipped to norm `max_norm` at every step.

        forward:   carry, y = cell(params, carry, x)
        backward:  dL/dcarry_{t-1}, as step t computes it, is clipped for each batch element,
                   by its norm over all fields of the carry together

    The gradient by lag therefore never exceeds `max_norm`, whatever the Jacobians are. The gradient
    that a step's loss adds through y is first clipped where it enters the preceding step. Unlike
    global clipping, this can change the direction of the parameter gradient. `max_norm` has the
    units of the differentiated function: estimators differentiate the loss SUM, so it bounds the
    gradient of one batch element's summed and weighted loss, independently of T and B.

    Args (all static):
      cell: any `Cell`; params and carry are those of `cell`.
      max_norm: a positive number; inf disables clipping.

    Raises:
      TypeError: `max_norm` is not a Python number.
      ValueError: `max_norm` is not positive.
    """

    max_norm: float | int

    def __post_init__(self) -> None:
        if not isinstance(self.max_norm, int | float):
            raise TypeError(
                f"ClippedCell.max_norm must be a Python number (cells are static); "
                f"got {self.max_norm!r}"
            )
        check_max_norm("ClippedCell", self.max_norm)

    def inputs(self, params: Params, xs: Float[Array, "*time_batch D"]) -> Any:
        """Compute the input projection of the inner cell; return `xs` if it has none."""
        return input_projection(self.cell, params, xs)

    def recur(self, params: Params, carry: Carry, z: Any) -> tuple[Carry, Any]:
        """Take the recurrent step, with the cotangent of the carry clipped."""
        return recurrent_step(self.cell, params, self._clipped(carry), z)

    def __call__(
        self, params: Params, carry: Carry, x: Float[Array, "*batch D"]
    ) -> tuple[Carry, Any]:
        """Take one step of the inner cell, with the cotangent of the carry clipped."""
        return self.cell(params, self._clipped(carry), x)

    def _clipped(self, carry: Carry) -> Carry:
        single = jax.tree.leaves(jax.eval_shape(self.cell.initial_carry))
        batch_dims = [
            leaf.ndim - one.ndim for leaf, one in zip(jax.tree.leaves(carry), single, strict=True)
        ]
        return clip_cotangent(carry, self.max_norm, min(batch_dims, default=0))


class LearnedStartParams(NamedTuple):
    """cell: the parameters of the inner cell; start: its initial carry, without batch axes."""

    cell: Params
    start: Carry


class LearnedStartCarry(NamedTuple):
    """inner: the carry of the inner cell; fresh: `[*batch]`, 1 before the first step, else 0."""

    inner: Carry
    fresh: Float[Array, "*batch"]


@dataclasses.dataclass(frozen=True)
class LearnedStart(_Wrapper):
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


@dataclasses.dataclass(frozen=True)
class Recorded(_Wrapper):
    """A cell with output `(carry, y)`: the carry that enters the step, after any reset, and y."""

    def __call__(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Any]:
        """Take one step; return `(carry, (entering carry, y))`."""
        new, y = self.cell(params, carry, x)
        return new, (carry, y)
