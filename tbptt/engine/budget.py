"""A budget in bytes for the backward pass, and the cheapest plan that fits it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from tbptt.engine.any_cell import AnyBackprop, backprop_of
from tbptt.engine.plan import CarriesOnly, Remat, Segments
from tbptt.engine.sizes import block_of, bytes_of, share, steps_kept
from tbptt.types import Cell, LayeredCell, Params


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
    steps: about the steps of a block, see `sizes.share`
    lean:  from so many steps on, nothing but carries is kept without being asked, see `sizes.steps_kept`
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
    back = backprop_of(cell)

    def step(params: Params, carry: Any, x: Any) -> Any:
        weights = back.prepare(params)
        leaving, y, saved = back.forward(weights, carry, back.inputs(weights, x))
        one = jax.tree.map(lambda a: a[None], (carry, leaving, saved))
        _, factors = back.linearize(weights, x[None], *one)
        return leaving, y, saved, factors, back.inputs(weights, x)

    leaving, y, saved, factors, z = jax.eval_shape(step, params, _carry(cell, batch_shape), x)
    carry, saved_bytes = bytes_of(leaving), bytes_of(saved)
    block = bytes_of(factors) + 2 * bytes_of(z) + carry
    lean = math.inf if isinstance(back, AnyBackprop) else steps_kept(back, params, leaving, x)
    if isinstance(back, AnyBackprop):  # kept whole, such a cell is differentiated by JAX, which keeps its factors too
        saved_bytes += bytes_of(factors) + bytes_of(z)
    return StepBytes(
        carry, carry + saved_bytes, block, 2 * bytes_of(y) + outer, 3 * bytes_of(params), block_of(bytes_of(z)), lean
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
    block = share(length, sizes.steps) * sizes.block
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
