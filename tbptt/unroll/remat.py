"""Rematerialisation: plans for the residuals of the backward pass, and budgets in bytes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tbptt.cells.base import LayeredCell
from tbptt.types import Cell, Params
from tbptt.unroll.autodiff_vjp import AutodiffVJP, cell_vjp_of, scan_residuals
from tbptt.unroll.block_size import bytes_of, even_block_length, max_saved_steps, steps_per_block
from tbptt.windows import scan_segments


@dataclasses.dataclass(frozen=True)
class CarriesOnly:
    """Rematerialise the intermediates of every step; the residuals are inputs and carries.

    For an LSTM the carries are two arrays `[T, *batch, H]`. The backward pass recomputes the gates
    of all steps of a block from them in one matrix product, without a second scan over time.
    """


@dataclasses.dataclass(frozen=True)
class Segments:
    """Rematerialise whole segments; the residuals are the carries between segments.

    Args (static):
      length: steps per segment. None for ceil(sqrt(T)), which stores sqrt(T) carries and the
        intermediates of the sqrt(T) steps of one segment instead of those of T steps, at the cost
        of one extra forward pass. A tuple gives nested segments, the longest first: `(1000, 30)`
        stores T / 1000 + 1000 / 30 carries and the intermediates of 30 steps, at the cost of two
        extra forward passes.

    Raises:
      ValueError: a length is below 1, or a tuple is not in decreasing order.

    References: Chen, Xu, Zhang, Guestrin, *Training deep nets with sublinear memory cost*, 2016,
    arXiv:1604.06174.
    """

    length: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        lengths = self.length if isinstance(self.length, tuple) else (self.length,)
        for length in lengths:
            if length is not None and length < 1:
                raise ValueError(
                    "Segments.length must be at least 1 step, or None for ceil(sqrt(T)); got "
                    f"{length}"
                )
        if None in lengths[1:] or (
            len(lengths) > 1 and list(lengths) != sorted(lengths, reverse=True)
        ):
            raise ValueError(
                f"Segments.length as a tuple must hold steps, the longest first; got {self.length}"
            )

    def lengths(self, T: int) -> tuple[int, ...]:
        """Return the lengths of the nested segments for T steps, the longest first."""
        if self.length is None:
            return (math.isqrt(max(T - 1, 0)) + 1,)
        lengths = self.length if isinstance(self.length, tuple) else (self.length,)
        return tuple(min(length, max(T, 1)) for length in lengths)


Remat: TypeAlias = CarriesOnly | Segments


def in_segments(
    run: Callable[[Any, Any], tuple[Any, Any]], remat: Remat | None, T: int
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Wrap `run(carry, steps) -> (carry, out)` to rematerialise the segments of a plan."""
    for length in reversed(remat.lengths(T)) if isinstance(remat, Segments) else ():
        run = functools.partial(scan_segments, jax.checkpoint(run), length=length)
    return run


@dataclasses.dataclass(frozen=True)
class MemoryBudget:
    """Rematerialise as little as a budget allows.

    The plan is the first one whose predicted bytes are at most `bytes`, from the fastest to the
    smallest: None; `CarriesOnly()`; one level of `Segments`, the longest that fit; two levels;
    three levels. In `sequence_loss` the budget includes the readout, which is then rematerialised
    by segment too.

    Args (static):
      bytes: temporary memory for one gradient, without the parameters and the batch.

    Raises:
      ValueError: `bytes` is not a positive Python int.
    """

    bytes: int

    def __post_init__(self) -> None:
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 1:
            raise ValueError(
                "MemoryBudget.bytes must be a positive Python int (100 << 20 is 100 MiB); got "
                f"{self.bytes!r}"
            )


class StepBytes(NamedTuple):
    """Sizes for `predicted_bytes`, in bytes per step of all batch rows unless stated.

    carry: the carry
    saved: the residuals of the step without rematerialisation, carry included
    block: temporaries of the backward pass per step of a block; one block is allocated at a time
    carries_only_block: the same if the residuals are carries only
    inputs: the inputs, which segments copy
    outer: the output and its cotangent, and the results of a readout
    fixed: bytes allocated once: the weight gradient and copies of the weights
    steps: the approximate number of steps of a block, see `block_size.even_block_length`
    carries_only_from: the number of steps from which the default plan stores carries only, see
      `block_size.max_saved_steps`
    supports_carries_only: whether params and carry are floating
    copied_whole: whether segments copy all inputs: XLA gives a batch of one row another layout
    """

    carry: int
    saved: int
    block: int
    carries_only_block: int
    inputs: int
    outer: int
    fixed: int
    steps: int
    carries_only_from: float
    supports_carries_only: bool
    copied_whole: bool


class MemoryPlan(NamedTuple):
    """A plan, its predicted bytes, and the extra forward passes of its backward pass."""

    remat: Remat | None
    predicted_bytes: int
    extra_forwards: int


def step_bytes(
    cell: Cell, params: Params, batch_shape: tuple[int, ...], x: Any, outer: int = 0
) -> StepBytes:
    """Compute the bytes of one step of a cell from shapes; a stack has the sum over its layers.

    Args:
      cell: the cell; static.
      params: its parameters, or their shapes.
      batch_shape: the batch axes; static.
      x: the shape and dtype of the input of one step, `[*batch, D]`.
      outer: bytes of a step outside the cell.
    """
    if isinstance(cell, LayeredCell):
        layers = []
        for layer, p in zip(cell.cells, params, strict=True):
            layers.append(step_bytes(layer, p, batch_shape, x))
            _, x = jax.eval_shape(layer, p, _carry(layer, batch_shape), x)

        def total(name: str) -> int:
            return sum(getattr(one, name) for one in layers)

        return StepBytes(
            carry=total("carry"),
            saved=total("saved"),
            block=total("block"),
            carries_only_block=total("carries_only_block"),
            inputs=layers[0].inputs,
            outer=total("outer") + outer,
            fixed=total("fixed"),
            steps=max(one.steps for one in layers),
            carries_only_from=min(one.carries_only_from for one in layers),
            supports_carries_only=all(one.supports_carries_only for one in layers),
            copied_whole=layers[0].copied_whole,
        )
    cell_vjp = cell_vjp_of(cell)

    def step(params: Params, carry: Any, x: Any) -> Any:
        weights = cell_vjp.prepare(params)
        leaving, y, saved = cell_vjp.forward(weights, carry, cell_vjp.inputs(weights, x))
        one = jax.tree.map(lambda a: a[None], (carry, leaving, saved))
        _, factors = cell_vjp.linearize(weights, x[None], *one)
        return leaving, y, saved, factors, cell_vjp.inputs(weights, x)

    carry = _carry(cell, batch_shape)
    leaving, y, saved, factors, z = jax.eval_shape(step, params, carry, x)
    if isinstance(cell_vjp, AutodiffVJP):  # without a plan a scan, which JAX differentiates
        residual_bytes, block = bytes_of(scan_residuals(cell, params, carry, x)), 0
        # Those of the loop and those of the weight gradient: XLA may hold both at once.
        carries_only_block = bytes_of(factors) + 2 * bytes_of(z) + residual_bytes
        carries_only_from = math.inf
    else:
        residual_bytes = bytes_of(carry) + bytes_of(saved)
        block = carries_only_block = bytes_of(factors) + 2 * bytes_of(z) + bytes_of(carry)
        carries_only_from = max_saved_steps(cell_vjp, params, leaving, x)
    return StepBytes(
        carry=bytes_of(carry),
        saved=residual_bytes,
        block=block,
        carries_only_block=carries_only_block,
        inputs=bytes_of(x),
        outer=2 * bytes_of(y) + outer,
        fixed=3 * bytes_of(params),
        steps=steps_per_block(bytes_of(z)),
        carries_only_from=carries_only_from,
        supports_carries_only=all_floating((params, carry)),
        copied_whole=math.prod(batch_shape) == 1,
    )


def predicted_bytes(remat: Remat | None, sizes: StepBytes, T: int) -> int:
    """Predict the temporary bytes of one gradient over T steps.

    None:                T (saved + outer) + b block + fixed; from `carries_only_from` steps as
                         CarriesOnly
    CarriesOnly:         T (carry + outer) + b carries_only_block + fixed
    Segments(l1 .. ld):  (T / l1 + l1 / l2 + ..) carry + ld (saved + outer) + b block + fixed
                         + (l1 + l2 + .. + ld) inputs
                         + T inputs if l1 does not divide T, or if the batch has one row

    b is the number of steps of one block, of T or of ld steps.
    """
    length, carries, copies = T, 0, 0
    if isinstance(remat, Segments):
        for inner in remat.lengths(T):
            whole = length == T and (T % inner or sizes.copied_whole)
            copies += inner + (T if whole else 0)
            carries, length = carries + math.ceil(length / inner), min(inner, length)
    each, block = sizes.saved, sizes.block
    if isinstance(remat, CarriesOnly) or length >= sizes.carries_only_from:
        each, block = sizes.carry, sizes.carries_only_block
    block *= even_block_length(length, sizes.steps)
    stored = carries * sizes.carry + copies * sizes.inputs + length * (each + sizes.outer)
    return stored + block + sizes.fixed


def plan_memory(remat: Remat | MemoryBudget | None, sizes: StepBytes, T: int) -> MemoryPlan:
    """Return the given plan, or the fastest one within a budget, with its predicted bytes.

    Raises:
      ValueError: no plan fits the budget; the message contains the bytes of the smallest plan.
    """
    if not isinstance(remat, MemoryBudget):
        return MemoryPlan(remat, predicted_bytes(remat, sizes, T), _forwards(remat, T))
    least = None
    for plan in _plans(T):
        if isinstance(plan, CarriesOnly) and not sizes.supports_carries_only:
            continue
        predicted = predicted_bytes(plan, sizes, T)
        if predicted <= remat.bytes:
            return MemoryPlan(plan, predicted, _forwards(plan, T))
        least = predicted if least is None else min(least, predicted)
    raise ValueError(
        f"MemoryBudget.bytes={remat.bytes} is too small for T={T}: the smallest plan needs about "
        f"{least} bytes, of which {sizes.fixed} are the weight gradient and copies of the "
        "weights. Raise the budget, lower the batch size, or truncate"
    )


def _plans(T: int) -> Iterator[Remat | None]:
    """Yield the plans, from the fastest to the smallest."""
    yield None
    yield CarriesOnly()
    for level in (1, 2, 3):
        root = T ** (1 / (level + 1))
        for factor in (16, 8, 4, 2, 1, 0.5):  # length of the innermost segment over the root
            inner = max(1, round(root * factor))
            ratio, lengths = (T / inner) ** (1 / level), [T]
            for k in reversed(range(level)):
                # Lengths that divide T, if possible: XLA copies the inputs otherwise.
                lengths.append(even_block_length(lengths[-1], max(inner, round(inner * ratio**k))))
            if len(set(lengths)) == level + 1:
                yield Segments(tuple(lengths[1:]))


def _forwards(remat: Remat | None, T: int) -> int:
    return len(remat.lengths(T)) if isinstance(remat, Segments) else 0


def all_floating(tree: Any) -> bool:
    """Return whether all leaves are floating, as `CarriesOnly` needs of params and carry."""
    return all(
        jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(tree)
    )


def _carry(cell: Cell, batch_shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(lambda: cell.initial_carry(batch_shape))


def resolve_budget(
    cell: Cell, params: Params, xs: Any, remat: Remat | MemoryBudget | None
) -> Remat | None:
    """Return the plan that a `MemoryBudget` selects for a sequence; return other plans as given."""
    if not isinstance(remat, MemoryBudget):
        return remat
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    return plan_memory(remat, step_bytes(cell, params, xs.shape[1:-1], x), xs.shape[0]).remat


def refuse_budget(name: str, remat: Remat | MemoryBudget | None) -> None:
    """Raise a ValueError if `remat` is a `MemoryBudget`, which only `unroll` supports."""
    if isinstance(remat, MemoryBudget):
        raise ValueError(
            f"{name} does not support remat=MemoryBudget(...), whose predictions hold for unroll "
            "only: use Segments(length) or CarriesOnly(), or tbptt.unroll"
        )
