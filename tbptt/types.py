"""The types that the packages of the library share; this module imports none of them.

Letters, everywhere in this library: `T` time, `B` batch, `D` input, `H` hidden; `*batch` is any
number of batch axes, including none. Every sequence is time-major, `[T, *batch, D]`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Bool, Float, Key, Num, UInt32

PRNGKey: TypeAlias = Key[Array, ""] | UInt32[Array, "2"]
Params: TypeAlias = Any  # a pytree of floating arrays, the trainable parameters
Carry: TypeAlias = Any  # a pytree of arrays `[*batch, ...]`, the recurrent state between two steps
Memory: TypeAlias = Any  # a pytree, the state of an estimator between two calls


@runtime_checkable
class Cell(Protocol):
    """One step of a recurrence, as a pure function of its parameters.

    A cell is a frozen dataclass of static sizes (hashable, without arrays). Params and carries are
    NamedTuples. So `jax.lax.scan(functools.partial(cell, params), carry, xs)` unrolls the cell.
    """

    @property
    def input_dim(self) -> int: ...

    @property
    def hidden_dim(self) -> int: ...

    def init(self, key: PRNGKey) -> Params:
        """Draw the parameters. The key is consumed."""
        ...

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Return the carry that enters step 0. A learned initial carry belongs in params."""
        ...

    def __call__(
        self, params: Params, carry: Carry, x: Float[Array, "*batch D"]
    ) -> tuple[Carry, Any]:
        """Take one step and return `(carry, y)` with `y: [*batch, H]`."""
        ...


@runtime_checkable
class UnrollFn(Protocol):
    """A function that runs a cell through time.

        for t in range(T):                                   # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue              # absent step: the carry is unchanged
            if resets[t]: carry = cell.initial_carry()       # no gradient crosses a reset
            carry, ys[t] = cell(params, carry, xs[t])

    (each `if` elementwise over *batch). Examples: `unroll`, `plain_unroll`, `parallel_unroll`,
    `newton_unroll` and the `unroll` of a backend.
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
    """A segment of sequence data, time-major.

    inputs:  `[T, *batch, D]` floats, or `[T, *batch]` integer symbols
    targets: `[T, *batch, ...]`, in the form that the loss takes
    weights: `[T, *batch]` weight of the loss of each step; 0 for burn-in; None = 1 everywhere
    resets:  `[T, *batch]` True = start from the initial carry before this step; no gradient crosses
      it; None = nowhere
    mask:    `[T, *batch]` False = this step does not exist: the carry is unchanged (even by a reset
      there) and the loss is 0; None = all steps exist
    """

    inputs: Num[Array, "T *batch_D"]
    targets: Any
    weights: Float[Array, "T *batch"] | None = None
    resets: Bool[Array, "T *batch"] | None = None
    mask: Bool[Array, "T *batch"] | None = None


# (params, carry, batch) -> (loss_sum, carry): the weighted SUM of the losses of the steps, a
# scalar. It is additive over time: the sum over a sequence equals the sum over its segments if each
# starts from the carry that leaves the previous one. The caller divides by the total weight, once:
# by the sum of the weights of all entries [T, *batch], so the mean is over time and batch.
LossFn: TypeAlias = Callable[[Params, Carry, Batch], tuple[Float[Array, ""], Carry]]


class Gradient(NamedTuple):
    """The result of an estimator.

    loss:   scalar, the weighted mean of the losses over time and batch
    grads:  the gradient of the loss, or an estimate of it; a pytree like params
    memory: the memory to pass to the next call
    info:   a NamedTuple of diagnostics; no later call needs it
    """

    loss: Float[Array, ""]
    grads: Params
    memory: Memory
    info: Any


class InitFn(Protocol):
    def __call__(self, params: Params, carry: Carry, batch: Batch) -> Memory:
        """Return the memory of a stream that starts from `carry`.

        `batch` is an example; only its shapes are used.
        """
        ...


class EstimateFn(Protocol):
    def __call__(
        self, params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        """Estimate the gradient of the mean loss of a batch, and update the memory."""
        ...


class Estimator(NamedTuple):
    """A gradient estimator, as a pair of pure functions.

    All estimators share this interface, so that replacing one by another changes one line.
    """

    init: InitFn
    estimate: EstimateFn
