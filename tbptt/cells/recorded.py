"""A cell that shows its carries: what `unroll` hides when it hands them from step to step."""

import dataclasses
from typing import Any

from jaxtyping import Array

from tbptt.types import Carry, Cell, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Steps another cell and outputs (the carry that entered the step, after any reset; the cell's own y)."""

    cell: Cell

    @property
    def input_dim(self) -> int:
        return self.cell.input_dim

    @property
    def hidden_dim(self) -> int:
        return self.cell.hidden_dim

    def init(self, key: PRNGKey) -> Params:
        """Draws the cell's parameters. The key is consumed."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Makes the cell's initial carry."""
        return self.cell.initial_carry(batch_shape)

    def __call__(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Any]:
        """Takes one step; returns (carry, (entering carry, y))."""
        new, y = self.cell(params, carry, x)
        return new, (carry, y)
