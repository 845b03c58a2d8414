"""The contract: every type that crosses a room's door, and nothing else.

Letters, everywhere in this library: `T` time, `B` batch, `D` input, `H` hidden; `*batch` is any number of batch axes,
none included. Every sequence is time-major, `[T, *batch, D]`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Bool, Float, Key, Num, UInt32

PRNGKey: TypeAlias = Key[Array, ""] | UInt32[Array, "2"]
Params: TypeAlias = Any  # a pytree of floating arrays, what is learnt
Carry: TypeAlias = Any  # a pytree of arrays `[*batch, ...]`, what a step hands to the next
Memory: TypeAlias = Any  # a pytree, what an estimator remembers between two calls


@runtime_checkable
class Cell(Protocol):
    """One step of a recurrence, as a pure function of its parameters.

    A cell is a frozen dataclass of static sizes (hashable, no arrays inside); params and carries are NamedTuples. So
    `jax.lax.scan(functools.partial(cell, params), carry, xs)` unrolls it.
    """

    @property
    def input_dim(self) -> int: ...

    @property
    def hidden_dim(self) -> int: ...

    def init(self, key: PRNGKey) -> Params:
        """Draws parameters. The key is consumed."""
        ...

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Makes the carry that enters step 0. A learned start belongs in params."""
        ...

    def __call__(self, params: Params, carry: Carry, x: Float[Array, "*batch D"]) -> tuple[Carry, Any]:
        """Takes one step: `(carry, y)` with `y: [*batch, H]`."""
        ...


@runtime_checkable
class SplitCell(Cell, Protocol):
    """A cell in two halves, so that an engine can run the input side of many steps as one matrix product.

    `cell(params, carry, x)` is exactly `cell.recur(params, carry, cell.inputs(params, x))`.
    """

    def inputs(self, params: Params, xs: Float[Array, "*time_batch D"]) -> Any:
        """Computes what needs no carry; any number of leading axes, time among them."""
        ...

    def recur(self, params: Params, carry: Carry, z: Any) -> tuple[Carry, Any]:
        """Takes the rest of one step."""
        ...


@runtime_checkable
class Backprop(Protocol):
    """A cell's step and its backward pass, taken apart so that a loop holds only what must wait for its turn.

    For T steps, forward and back (a carry is `entering` a step and `leaving` it):

        weights = prepare(params)
        zs = inputs(weights, xs)                                                          # all steps at once
        for t in range(T): leaving[t], ys[t], saved[t] = forward(weights, entering[t], zs[t])
        common, factors = linearize(weights, xs, entering, leaving, saved)                # all steps at once
        for t in reversed(range(T)): d, emitted[t] = backward(common, factors[t], d, d_ys[t])
        d_params, d_xs = collect(params, xs, entering, leaving, factors, emitted)         # all steps at once
    """

    def prepare(self, params: Params) -> Any:
        """Computes what every step forward needs of the parameters."""
        ...

    def inputs(self, weights: Any, xs: Array) -> Any:
        """Computes the input side of any number of steps."""
        ...

    def forward(self, weights: Any, carry: Carry, z: Any) -> tuple[Carry, Any, Any]:
        """Takes one step: `(leaving, y, saved)`; saved is what `linearize` would else have to compute again."""
        ...

    def linearize(self, weights: Any, xs: Array, entering: Carry, leaving: Carry, saved: Any) -> tuple[Any, Any]:
        """Computes all that `backward` needs but the cotangents, `(common, factors)`: what every step shares, and what is
        each step's own, for a block of steps. saved is None if it was not kept."""
        ...

    def backward(self, common: Any, factors: Any, d_leaving: Carry, d_y: Any) -> tuple[Carry, Any]:
        """Takes one step back: `(d_entering, emitted)`."""
        ...

    def collect(
        self, params: Params, xs: Array, entering: Carry, leaving: Carry, factors: Any, emitted: Any
    ) -> tuple[Params, Array]:
        """Computes the gradients of the parameters, summed over a block of steps, and of its inputs."""
        ...


@runtime_checkable
class DerivedCell(Cell, Protocol):
    """A cell whose backward pass was derived by hand."""

    @property
    def backprop(self) -> Backprop: ...


@runtime_checkable
class LayeredCell(Cell, Protocol):
    """Cells on top of each other; params and carry are tuples, one entry a cell, the lowest first."""

    @property
    def cells(self) -> tuple[Cell, ...]: ...


@runtime_checkable
class AffineCell(Cell, Protocol):
    """A cell that is elementwise linear in its carry given x, so that an engine can run it in parallel over time.

    Leaf by leaf, `cell(params, carry, x)` is `carry_t = a_t * carry_{t-1} + b_t` and `y_t = outputs(params, carry_t, x_t)`.
    """

    def affine(self, params: Params, xs: Float[Array, "*time_batch D"]) -> tuple[Carry, Carry]:
        """Computes (a, b), carries of leaves `[*time_batch, ...]`; any number of leading axes, time among them."""
        ...

    def outputs(self, params: Params, carries: Carry, xs: Float[Array, "*time_batch D"]) -> Any:
        """Computes the ys of steps from the carries that left them."""
        ...


class Batch(NamedTuple):
    """A stretch of sequence data, time-major.

    inputs:  `[T, *batch, D]` floats, or `[T, *batch]` integer symbols
    targets: `[T, *batch, ...]`, whatever the loss wants
    weights: `[T, *batch]` how much each step's loss counts; 0 = burn-in; None = 1 everywhere
    resets:  `[T, *batch]` True = start from the initial carry before this step; no gradient crosses it; None = nowhere
    mask:    `[T, *batch]` False = this step does not exist: the carry is held (a reset there too), the loss is 0
    """

    inputs: Num[Array, "T *batch_D"]
    targets: Any
    weights: Float[Array, "T *batch"] | None = None
    resets: Bool[Array, "T *batch"] | None = None
    mask: Bool[Array, "T *batch"] | None = None


# (params, carry, batch) -> (loss_sum, carry): the weighted SUM of the steps' losses, a scalar. Additive over time: the
# sum over a sequence is the sum over its pieces with the carry handed on. Whoever combines pieces divides, once.
LossFn: TypeAlias = Callable[[Params, Carry, Batch], tuple[Float[Array, ""], Carry]]


class Gradient(NamedTuple):
    """What an estimator returns.

    loss:   scalar, the weighted mean of the steps' losses
    grads:  its gradient (or the estimate of it), a pytree like params
    memory: what to pass to the next call
    info:   a NamedTuple of things to look at, never needed to go on
    """

    loss: Float[Array, ""]
    grads: Params
    memory: Memory
    info: Any


class InitFn(Protocol):
    def __call__(self, params: Params, carry: Carry, batch: Batch) -> Memory:
        """Makes the memory of a stream that starts from `carry`; `batch` is an example, used for its shapes only."""
        ...


class EstimateFn(Protocol):
    def __call__(self, params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        """Estimates the gradient of the batch's mean loss and remembers what the next batch of the stream needs."""
        ...


class Estimator(NamedTuple):
    """A way to get gradients through time, as a pair of pure functions. Swapping one for another changes one line."""

    init: InitFn
    estimate: EstimateFn
