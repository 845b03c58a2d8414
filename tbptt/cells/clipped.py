"""Clipping inside the recurrence: what flows backward through time is bounded at every step."""

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
    """Passes a tree through unchanged; backward, clips the norm of its cotangent for each batch element.

        forward:   tree
        backward:  d  ->  d min(1, max_norm / |d_b|)    for each b, |d_b| over all leaves together, overflow-safe

    An element whose cotangent holds inf or NaN passes unchanged, for the policy on the gradients to see. Reverse mode
    only: under jax.jvp it raises, since a clipped adjoint is the adjoint of no linear map.

    Args:
      tree: leaves `[*batch, ...]`; integer leaves pass.
      max_norm, batch_dims: static; the bound, and how many leading axes are batch.

    Returns:
      The tree.
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
    """A cell whose carry lets at most `max_norm` of gradient through, at every step and for each batch element.

        forward:   carry, y = cell(params, carry, x)
        backward:  dL/dcarry_{t-1}, as it leaves step t, is clipped by norm over all fields of the carry together

    so the gradient by lag never exceeds max_norm, whatever the Jacobians. What a step's own loss adds through y is not
    clipped until it enters the step before. The direction of the parameters' gradient may change (with global clipping
    it does not). max_norm is in units of what is differentiated: estimators differentiate the loss SUM, so of one
    element's own summed and weighted loss, whatever T and B.

    Args (all static):
      cell: any `Cell`; its params and carry are this cell's own.
      max_norm: positive; inf changes nothing.
    """

    cell: Cell
    max_norm: float | int

    def __post_init__(self) -> None:
        if not isinstance(self.max_norm, int | float):
            raise TypeError(f"ClippedCell.max_norm must be a Python number (cells are static); got {self.max_norm!r}")
        check_max_norm("ClippedCell", self.max_norm)

    @property
    def input_dim(self) -> int:
        return self.cell.input_dim

    @property
    def hidden_dim(self) -> int:
        return self.cell.hidden_dim

    def init(self, key: PRNGKey) -> Params:
        """Draws the inner cell's parameters. The key is consumed."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Makes the inner cell's initial carry."""
        return self.cell.initial_carry(batch_shape)

    def inputs(self, params: Params, xs: Float[Array, "*time_batch D"]) -> Any:
        """Computes the inner cell's input side; xs itself if it has none."""
        return input_projection(self.cell, params, xs)

    def recur(self, params: Params, carry: Carry, z: Any) -> tuple[Carry, Any]:
        """Takes the step from the input side, with the carry's cotangent clipped."""
        return recurrent_step(self.cell, params, self._clipped(carry), z)

    def __call__(self, params: Params, carry: Carry, x: Float[Array, "*batch D"]) -> tuple[Carry, Any]:
        """Takes one step of the inner cell, with the carry's cotangent clipped."""
        return self.cell(params, self._clipped(carry), x)

    def _clipped(self, carry: Carry) -> Carry:
        single = jax.tree.leaves(jax.eval_shape(self.cell.initial_carry))
        batch_dims = [leaf.ndim - one.ndim for leaf, one in zip(jax.tree.leaves(carry), single, strict=True)]
        return clip_cotangent(carry, self.max_norm, min(batch_dims, default=0))
