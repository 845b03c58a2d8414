"""Rematerialisation: which residuals the backward pass keeps, and plans that fit a budget in bytes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax

from tbptt.cells.base import LayeredCell
from tbptt.types import Cell, Params
from tbptt.unroll.autodiff_vjp import AutodiffVJP, cell_vjp_of
from tbptt.unroll.block_size import bytes_of, even_share, steps_kept, steps_per_block
from tbptt.windows import in_pieces


@dataclasses.dataclass(frozen=True)
class CarriesOnly:
    """Rematerialise the insides of every step: keep inputs and carries, two arrays `[T, *batch, H]` for an LSTM.

    With the carries known, the gates of all steps are computed again side by side: one product for a block of steps, no
    second run through time.
    """


@dataclasses.dataclass(frozen=True)
class Segments:
    """Rematerialise: keep the carries between segments only, and run each segment again in the backward pass.

    Args (static): length, steps a segment; None = ceil(sqrt(T)), which keeps about 2 sqrt(T) carries instead of every
    intermediate of T steps, for one extra forward pass. A tuple nests, the longest first: `(1000, 30)` keeps T / 1000 + 34
    carries and 30 steps of intermediates, for two.

    References: Chen, Xu, Zhang, Guestrin, *Training deep nets with sublinear memory cost*, 2016, arXiv:1604.06174.
    """

    length: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        lengths = self.length if isinstance(self.length, tuple) else (self.length,)
        for length in lengths:
            if length is not None and length < 1:
                raise ValueError(f"Segments.length must be at least 1 step, or None for ceil(sqrt(T)); got {length}")
        if None in lengths[1:] or (len(lengths) > 1 and list(lengths) != sorted(lengths, reverse=True)):
            raise ValueError(f"Segments.length as a tuple holds steps, the longest first; got {self.length}")

    def lengths(self, T: int) -> tuple[int, ...]:
        """Returns the lengths of the nested segments for T steps, the longest first."""
        if self.length is None:
            return (math.isqrt(max(T - 1, 0)) + 1,)
        lengths = self.length if isinstance(self.length, tuple) else (self.length,)
        return tuple(min(length, max(T, 1)) for length in lengths)


Remat: TypeAlias = CarriesOnly | Segments


def in_segments(
    run: Callable[[Any, Any], tuple[Any, Any]], remat: Remat | None, T: int
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Wrap `run(carry, steps) -> (carry, out)` so that each segment of `Segments` is rematerialised as a whole."""
    for length in reversed(remat.lengths(T)) if isinstance(remat, Segments) else ():
        run = functools.partial(in_pieces, jax.checkpoint(run), piece=length)
    return run


@dataclasses.dataclass(frozen=True)
class MemoryBudget:
    """Rematerialise as little as fits: the cheapest plan whose predicted bytes are at most `bytes`.

    Tried from cheap in time to cheap in memory: what `unroll` does unasked; `CarriesOnly()`; one level of `Segments`,
    the longest that fit; two levels; three. Given to `sequence_loss` it counts the readout too, and cuts it with the
    rest.

    Args (static): bytes, of temporary memory for one gradient; the parameters and the batch themselves do not count.
    """

    bytes: int

    def __post_init__(self) -> None:
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 1:
            raise ValueError(f"MemoryBudget.bytes must be a positive Python int (100 << 20 is 100 MiB); got {self.bytes!r}")


class StepBytes(NamedTuple):
    """What one step of all lanes needs, in bytes.

    carry: one carry
    kept:  what the plan without recomputation keeps of it for the backward pass, its carry included
    block: what the backward pass makes of it, for one block of steps at a time
    outer: what its surroundings hold: the output and its cotangent, a readout's results
    fixed: not of a step, but once: the weights' gradient and copies of the weights
    steps: about the steps of a block, see `block_size.even_share`
    lean:  from so many steps on, nothing but carries is kept without being asked, see `block_size.steps_kept`
    """

    carry: int
    kept: int
    block: int
    outer: int
    fixed: int
    steps: int
    lean: float


class MemoryPlan(NamedTuple):
    """A plan, the bytes predicted for it, and how many forward passes the backward pass makes again."""

    remat: Remat | None
    predicted_bytes: int
    extra_forwards: int


def step_bytes(cell: Cell, params: Params, batch_shape: tuple[int, ...], x: Any, outer: int = 0) -> StepBytes:
    """Counts what a step of a cell needs, by its shapes alone; a stack is the sum of its layers.

    Args: x, the shape and dtype of one step's input `[*batch, D]`; outer, bytes of a step outside the cell.
    """
    if isinstance(cell, LayeredCell):
        layers = []
        for layer, p in zip(cell.cells, params, strict=True):
            layers.append(step_bytes(layer, p, batch_shape, x))
            _, x = jax.eval_shape(layer, p, _carry(layer, batch_shape), x)
        carry, kept, block, own, fixed = (sum(one[i] for one in layers) for i in range(5))
        steps, lean = max(one.steps for one in layers), min(one.lean for one in layers)
        return StepBytes(carry, kept, block, own + outer, fixed, steps, lean)
    back = cell_vjp_of(cell)

    def step(params: Params, carry: Any, x: Any) -> Any:
        weights = back.prepare(params)
        leaving, y, saved = back.forward(weights, carry, back.inputs(weights, x))
        one = jax.tree.map(lambda a: a[None], (carry, leaving, saved))
        _, factors = back.linearize(weights, x[None], *one)
        return leaving, y, saved, factors, back.inputs(weights, x)

    leaving, y, saved, factors, z = jax.eval_shape(step, params, _carry(cell, batch_shape), x)
    carry, saved_bytes = bytes_of(leaving), bytes_of(saved)
    block = bytes_of(factors) + 2 * bytes_of(z) + carry
    lean = math.inf if isinstance(back, AutodiffVJP) else steps_kept(back, params, leaving, x)
    if isinstance(back, AutodiffVJP):  # kept whole, such a cell is differentiated by JAX, which keeps its factors too
        saved_bytes += bytes_of(factors) + bytes_of(z)
    return StepBytes(
        carry, carry + saved_bytes, block, 2 * bytes_of(y) + outer, 3 * bytes_of(params), steps_per_block(bytes_of(z)), lean
    )


def predicted_bytes(remat: Remat | None, sizes: StepBytes, T: int) -> int:
    """Predicts the temporary bytes of one gradient over T steps.

    nothing asked for:   T (kept + outer) + block; from `lean` steps on as CarriesOnly
    CarriesOnly:         T (carry + outer) + block
    Segments(l1 .. ld):  (T / l1 + l1 / l2 + ..) carry + ld (kept + outer) + block
    """
    length, carries = T, 0
    if isinstance(remat, Segments):
        for inner in remat.lengths(T):
            carries, length = carries + math.ceil(length / inner), min(inner, length)
    each = sizes.carry if isinstance(remat, CarriesOnly) or length >= sizes.lean else sizes.kept
    block = even_share(length, sizes.steps) * sizes.block
    return carries * sizes.carry + length * (each + sizes.outer) + block + sizes.fixed


def plan_memory(remat: Remat | MemoryBudget | None, sizes: StepBytes, T: int) -> MemoryPlan:
    """Returns the plan itself, or for a budget the cheapest one that fits, with its predicted bytes.

    Raises:
      ValueError: no plan fits the budget; the message says what the leanest needs.
    """
    if not isinstance(remat, MemoryBudget):
        return MemoryPlan(remat, predicted_bytes(remat, sizes, T), _forwards(remat, T))
    least = None
    for plan in _plans(T):
        predicted = predicted_bytes(plan, sizes, T)
        if predicted <= remat.bytes:
            return MemoryPlan(plan, predicted, _forwards(plan, T))
        least = predicted if least is None else min(least, predicted)
    raise ValueError(
        f"MemoryBudget.bytes={remat.bytes} is too small for T={T}: the leanest plan needs about {least} bytes, of which "
        f"{sizes.fixed} are the weights' gradient. Raise the budget, lower the batch size, or truncate"
    )


def _plans(T: int) -> Iterator[Remat | None]:
    """From cheap in time to cheap in memory."""
    yield None
    yield CarriesOnly()
    for level in (1, 2, 3):
        root = T ** (1 / (level + 1))
        for factor in (16, 8, 4, 2, 1, 0.5):  # how much longer than the root the innermost segment is
            inner = max(1, round(root * factor))
            if inner < T:
                ratio = (T / inner) ** (1 / level)
                yield Segments(tuple(max(inner, round(inner * ratio**k)) for k in reversed(range(level))))


def _forwards(remat: Remat | None, T: int) -> int:
    return len(remat.lengths(T)) if isinstance(remat, Segments) else 0


def _carry(cell: Cell, batch_shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(lambda: cell.initial_carry(batch_shape))


def resolve_budget(cell: Cell, params: Params, xs: Any, remat: Remat | MemoryBudget | None) -> Remat | None:
    """Return the plan that a `MemoryBudget` chooses for a sequence; any other plan as it is."""
    if not isinstance(remat, MemoryBudget):
        return remat
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    return plan_memory(remat, step_bytes(cell, params, xs.shape[1:-1], x), xs.shape[0]).remat


def refuse_budget(name: str, remat: Remat | MemoryBudget | None) -> None:
    """Raise a ValueError if `remat` is a `MemoryBudget`, whose plan is predicted for `unroll` only."""
    if isinstance(remat, MemoryBudget):
        raise ValueError(
            f"{name} does not support remat=MemoryBudget(...), whose predictions are those of unroll: use Segments(length) "
            "or CarriesOnly(), or tbptt.unroll"
        )
