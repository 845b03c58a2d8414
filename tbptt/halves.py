"""A cell's step in its two halves, whoever wraps or runs it; cells in one piece have an empty first half."""

from typing import Any, TypeGuard

from jaxtyping import Array

from tbptt.types import Carry, Cell, Params, SplitCell


def input_side(cell: Cell, params: Params, xs: Array) -> Any:
    """Computes what needs no carry, for any number of steps; xs itself if the cell has no halves."""
    return cell.inputs(params, xs) if _in_halves(cell) else xs


def rest_of_step(cell: Cell, params: Params, carry: Carry, z: Any) -> tuple[Carry, Any]:
    """Takes the step from its input side; the whole step if the cell has no halves."""
    return cell.recur(params, carry, z) if _in_halves(cell) else cell(params, carry, z)


def is_newer(cell: Cell, one: str, other: str) -> bool:
    """Says whether `one` was defined by the same class as `other`, or by a child of that class."""
    line = type(cell).__mro__
    place = [next((i for i, c in enumerate(line) if name in vars(c)), len(line)) for name in (one, other)]
    return place[0] <= place[1]


def _in_halves(cell: Cell) -> TypeGuard[SplitCell]:
    """Says whether `inputs` and `recur` are the halves of this very cell's `__call__`.

    A class with a `__call__` of its own inherits its parent's halves: they are the step of another cell.
    """
    return isinstance(cell, SplitCell) and is_newer(cell, "inputs", "__call__") and is_newer(cell, "recur", "__call__")
