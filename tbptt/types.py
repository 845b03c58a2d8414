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
class UnrollFn(Protocol):
    """A function that runs a cell through time: `unroll`, `plain_unroll`, `parallel_unroll`, `newton_unroll`, a backend's.

        for t in range(T):                                   # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue              # the step does not exist: the carry is held
            if resets[t]: carry = cell.initial_carry()       # no gradient crosses a reset
            carry, ys[t] = cell(params, carry, xs[t])

    (each `if` elementwise over *batch).
    """

    def __call__(
        self,
        cell: Any,
        params: Params,
        carry: Carry,
        xs: Any,
        *,
        resets: Any = None,
        mask: Any = None,
        reverse: bool = False,
        remat: Any = None,
    ) -> tuple[Carry, Any]:
        """Return the carry that leaves the last step and the outputs `[T, *batch, ...]`."""
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
