"""Clipping of the backward pass at every step of a recurrence."""

import dataclasses
import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from tbptt.cells.base import input_projection, recurrent_step
from tbptt.numerics import check_max_norm, clip_tree
from tbptt.types import Carry, Cell, Params, PRNGKey


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
class ClippedCell:
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

    cell: Cell
    max_norm: float | int

    def __post_init__(self) -> None:
        if not isinstance(self.max_norm, int | float):
            raise TypeError(
                f"ClippedCell.max_norm must be a Python number (cells are static); "
                f"got {self.max_norm!r}"
            )
        check_max_norm("ClippedCell", self.max_norm)

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
