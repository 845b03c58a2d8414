"""Cells on top of each other: a tuple of cells is a cell."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from tbptt.cells.base import input_projection, recurrent_step
from tbptt.types import Cell, PRNGKey


@dataclasses.dataclass(frozen=True)
class Stack:
    """Steps several layers, each reading the output of the one below.

        for cell in cells: carry[cell], x = cell(params[cell], carry[cell], x)

    Params and carry are tuples, one entry a layer, the lowest first.

    Args (static): cells, a tuple of cells whose sizes fit: `cells[l].hidden_dim == cells[l + 1].input_dim`.
    """

    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.cells, tuple) or not self.cells:
            raise ValueError(f"Stack.cells must be a non-empty tuple of cells; got {self.cells!r}")
        for layer, (below, above) in enumerate(zip(self.cells[:-1], self.cells[1:], strict=True)):
            if below.hidden_dim != above.input_dim:
                raise ValueError(
                    f"Stack.cells[{layer}] gives hidden_dim={below.hidden_dim}, but cells[{layer + 1}] takes "
                    f"input_dim={above.input_dim}; they must be equal"
                )

    @property
    def input_dim(self) -> int:
        return self.cells[0].input_dim

    @property
    def hidden_dim(self) -> int:
        return self.cells[-1].hidden_dim

    def init(self, key: PRNGKey) -> tuple[Any, ...]:
        """Draws every layer's parameters. The key is consumed."""
        keys = jax.random.split(key, len(self.cells))
        return tuple(cell.init(k) for cell, k in zip(self.cells, keys, strict=True))

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple[Any, ...]:
        """Makes every layer's initial carry."""
        return tuple(cell.initial_carry(batch_shape) for cell in self.cells)

    def inputs(self, params: tuple[Any, ...], xs: Float[Array, "*time_batch D"]) -> Any:
        """Computes the input side of the lowest layer: the only one that needs no carry."""
        return input_projection(self.cells[0], params[0], xs)

    def recur(self, params: tuple[Any, ...], carry: tuple[Any, ...], z: Any) -> tuple[tuple[Any, ...], Any]:
        """Takes the step through all layers from the lowest one's input side."""
        first, y = recurrent_step(self.cells[0], params[0], carry[0], z)
        carries = [first]
        for cell, p, c in zip(self.cells[1:], params[1:], carry[1:], strict=True):
            c, y = cell(p, c, y)
            carries.append(c)
        return tuple(carries), y

    def __call__(
        self, params: tuple[Any, ...], carry: tuple[Any, ...], x: Float[Array, "*batch D"]
    ) -> tuple[tuple[Any, ...], Any]:
        """Takes one step through all layers; y is the highest layer's output `[*batch, H]`."""
        return self.recur(params, carry, self.inputs(params, x))
