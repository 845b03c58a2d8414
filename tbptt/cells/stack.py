"""A stack of cells, which is itself a cell."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from tbptt.cells.base import input_projection, recurrent_step
from tbptt.types import Cell, PRNGKey


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
