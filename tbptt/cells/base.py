"""Optional parts of a cell: input projection, recurrent step, backward pass, affine recurrence."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Array, Float

from tbptt.types import Carry, Cell, Params


@runtime_checkable
class SplitCell(Cell, Protocol):
    """A cell whose step is an input projection followed by a recurrent step.

    `cell(params, carry, x)` equals `cell.recur(params, carry, cell.inputs(params, x))`. The input
    projection does not depend on the carry, so `unroll` computes it for many steps as one matrix
    product.
    """

    def inputs(self, params: Params, xs: Float[Array, "*time_batch D"]) -> Any:
        """Compute the input projection, for any number of leading axes."""
        ...

    def recur(self, params: Params, carry: Carry, z: Any) -> tuple[Carry, Any]:
        """Take the recurrent step from the input projection `z`; return `(carry, y)`."""
        ...


@runtime_checkable
class CellVJP(Protocol):
    """The forward and backward pass of a cell, with all work that needs no carry outside the loops.

    `unroll` computes T steps and their gradient as follows. entering[t] is the carry that enters
    step t, and leaving[t] the one that leaves it: entering[t + 1] = leaving[t]. d is the cotangent
    of the carry, from that of leaving[T - 1] to that of entering[0]. emitted[t] is what `collect`
    needs of backward step t, for an LSTM the cotangent of its pre-activations `[*batch, 4H]`:

        weights = prepare(params)
        zs = inputs(weights, xs)                                                 # all steps at once
        for t in range(T):
            leaving[t], ys[t], saved[t] = forward(weights, entering[t], zs[t])
        common, factors = linearize(weights, xs, entering, leaving, saved)       # all steps at once
        for t in reversed(range(T)):
            d, emitted[t] = backward(common, factors[t], d, d_ys[t])
        d_params, d_xs = collect(params, xs, entering, leaving, factors, emitted)  # all steps
    """

    def prepare(self, params: Params) -> Any:
        """Compute the weights that every forward step uses."""
        ...

    def inputs(self, weights: Any, xs: Array) -> Any:
        """Compute the input projection of any number of steps."""
        ...

    def forward(self, weights: Any, carry: Carry, z: Any) -> tuple[Carry, Any, Any]:
        """Take one step; return `(leaving, y, saved)`, where `linearize` can reuse `saved`."""
        ...

    def linearize(
        self, weights: Any, xs: Array, entering: Carry, leaving: Carry, saved: Any
    ) -> tuple[Any, Any]:
        """Compute the derivatives that `backward` applies, for a block of steps.

        Return `(common, factors)`: what all steps share, and what belongs to each step. `saved` is
        None if it is rematerialised.
        """
        ...

    def backward(self, common: Any, factors: Any, d_leaving: Carry, d_y: Any) -> tuple[Carry, Any]:
        """Take one step back; return `(d_entering, emitted)`."""
        ...

    def collect(
        self, params: Params, xs: Array, entering: Carry, leaving: Carry, factors: Any, emitted: Any
    ) -> tuple[Params, Array]:
        """Compute the gradients of the parameters, summed over a block of steps, and of `xs`."""
        ...


@runtime_checkable
class LayeredCell(Cell, Protocol):
    """A stack of cells; params and carry are tuples with one entry per cell, first layer first."""

    @property
    def cells(self) -> Sequence[Cell]: ...


@runtime_checkable
class AffineCell(Cell, Protocol):
    """A cell that is elementwise linear in its carry, so that `parallel_unroll` can run it.

    For each leaf, `cell(params, carry, x)` is `carry_t = a_t * carry_{t-1} + b_t` and
    `y_t = outputs(params, carry_t, x_t)`.
    """

    def affine(self, params: Params, xs: Float[Array, "*time_batch D"]) -> tuple[Carry, Carry]:
        """Compute the carries `(a, b)` with leaves `[*time_batch, ...]`."""
        ...

    def outputs(self, params: Params, carries: Carry, xs: Float[Array, "*time_batch D"]) -> Any:
        """Compute the outputs of steps from the carries that leave them."""
        ...


def input_projection(cell: Cell, params: Params, xs: Array) -> Any:
    """Compute the input projection of any number of steps; return `xs` if the cell is not split."""
    return cell.inputs(params, xs) if is_split(cell) else xs


def recurrent_step(cell: Cell, params: Params, carry: Carry, z: Any) -> tuple[Carry, Any]:
    """Take the recurrent step from the input projection, or the whole step of another cell."""
    return cell.recur(params, carry, z) if is_split(cell) else cell(params, carry, z)


def is_split(cell: Cell) -> TypeGuard[SplitCell]:
    """Return whether the cell has an input projection and a recurrent step."""
    if getattr(cell, "inputs", None) is None or getattr(cell, "recur", None) is None:
        return False
    for name in ("inputs", "recur"):
        check_override(cell, name, depends_on=("__call__",))
    return True


def check_override(cell: Cell, name: str, depends_on: tuple[str, ...]) -> None:
    """Raise a TypeError if a class overrides part of its step but inherits its parent's `name`."""
    remedy = ", or set `backprop = None` in the class to have JAX derive it"
    remedy = remedy if name == "backprop" else ""
    for step in depends_on:
        if _depth(cell, step) < _depth(cell, name):
            raise TypeError(
                f"{type(cell).__name__} overrides {step} and inherits {name}, which belongs to the "
                "step of its parent class: "
                f"override {name} too{remedy}"
            )


def _depth(cell: Cell, name: str) -> int:
    """Return how many classes up an attribute is defined; the number of classes if nowhere."""
    classes = type(cell).__mro__
    return next((depth for depth, c in enumerate(classes) if name in vars(c)), len(classes))
