"""A cell that outputs its carries, which an unroll function does not return."""

import dataclasses
from typing import Any

from jaxtyping import Array

from tbptt.types import Carry, Cell, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A cell with output `(carry, y)`: the carry that enters the step, after any reset, and y."""

    cell: Cell

    @property
    def input_dim(self) -> int:
        return self.cell.input_dim

    @property
    def hidden_dim(self) -> int:
        return self.cell.hidden_dim

    def init(self, key: PRNGKey) -> Params:
        """Draw the parameters of the cell; the key is consumed."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Return the initial carry of the cell."""
        return self.cell.initial_carry(batch_shape)

    def __call__(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Any]:
        """Take one step; return `(carry, (entering carry, y))`."""
        new, y = self.cell(params, carry, x)
        return new, (carry, y)
