"""Functions that run a cell through time, with resets, masks, either direction and remat plans."""

import functools
from typing import Any

import jax
from jaxtyping import ArrayLike, Bool, Float

from tbptt.cells.base import CellVJP
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.blocked_vjp import blocked_unroll
from tbptt.unroll.remat import CarriesOnly as CarriesOnly
from tbptt.unroll.remat import MemoryBudget as MemoryBudget
from tbptt.unroll.remat import MemoryPlan as MemoryPlan
from tbptt.unroll.remat import Remat as Remat
from tbptt.unroll.remat import Segments as Segments
from tbptt.unroll.remat import in_segments, refuse_budget
from tbptt.unroll.remat import plan_memory as plan_memory
from tbptt.unroll.remat import step_bytes as step_bytes
from tbptt.unroll.scan import ScanBackend, plain_scan, reverse_time
from tbptt.unroll.validate import validated_steps


def unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Remat | MemoryBudget | None = None,
) -> tuple[Carry, Any]:
    """Run a cell over a sequence, with a fast backward pass.

        for t in range(T):                               # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue          # no such step: the carry is held
            if resets[t]: carry = cell.initial_carry()   # no gradient crosses a reset
            carry, ys[t] = cell(params, carry, xs[t])

    (each `if` elementwise over *batch). The values of `xs` at masked steps have no effect, even if
    they are NaN.

    Cells that define `backprop` (`Elman`, `GRU`, `LSTM`) compute the input projection and the
    weight gradient of many steps as one matrix product each, outside the scan. With `CarriesOnly()`
    this holds for any cell. A `Stack` runs layer by layer. Values and gradients equal those of
    `plain_unroll` to rounding. Forward-mode differentiation (`jax.jvp`) is not supported for T > 1:
    use `plain_unroll`.

    Args:
      cell: the cell; static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is allowed and returns the carry.
      resets: `[T, *batch]` booleans; None for no resets.
      mask: `[T, *batch]` booleans; None if every step exists.
      reverse: run from the last step to the first; static. `ys[t]` still belongs to `xs[t]`.
      remat: which intermediates the backward pass recomputes; static. None: those within a step
        where that is faster (at most 256 units, and more than 12 MiB to save), otherwise none.
        `CarriesOnly()`: those within a step. `Segments()`: all but the carries between segments.
        `MemoryBudget(bytes)`: as few as the budget allows.

    Returns:
      `(carry, ys)`: the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: the rank, sizes or dtypes of an argument do not fit the cell; the message names
        the argument.
      TypeError: `xs`, `resets` or `mask` has the wrong dtype, or a class overrides a step but not
        its `backprop`.

    Example:
      >>> import jax, jax.numpy as jnp, tbptt
      >>> cell = tbptt.LSTM(2, 8)
      >>> params = cell.init(jax.random.key(0))
      >>> carry, ys = tbptt.unroll(cell, params, cell.initial_carry((4,)), jnp.ones((10, 4, 2)))
      >>> ys.shape
      (10, 4, 8)
    """
    return blocked_unroll(_scan_backend, cell, params, carry, xs, resets, mask, reverse, remat)


def plain_unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Remat | None = None,
) -> tuple[Carry, Any]:
    """Run a cell over a sequence by `jax.lax.scan`, differentiated by JAX.

    This function defines the values and gradients of every unroll function. Its gradient is slower
    than that of `unroll`, but every kind of differentiation works, including forward mode
    (`jax.jvp`, `jax.jacfwd`, `jax.hessian`).

    Args:
      cell: the cell; static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is allowed and returns the carry.
      resets: `[T, *batch]` booleans; None for no resets.
      mask: `[T, *batch]` booleans; None if every step exists.
      reverse: run from the last step to the first; static. `ys[t]` still belongs to `xs[t]`.
      remat: None, `CarriesOnly()`, which applies `jax.checkpoint` to each step, or `Segments()`;
        static.

    Returns:
      `(carry, ys)`: the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: the rank, sizes or dtypes of an argument do not fit the cell, or `remat` is a
        `MemoryBudget`.
      TypeError: `xs`, `resets` or `mask` has the wrong dtype.
    """
    refuse_budget("plain_unroll", remat)
    steps = validated_steps(cell, params, carry, xs, resets, mask)
    step = functools.partial(cell, params)
    step = jax.checkpoint(step) if isinstance(remat, CarriesOnly) else step
    run = functools.partial(plain_scan, step, cell.initial_carry(steps.xs.shape[1:-1]))
    carry, ys = in_segments(run, remat, steps.xs.shape[0])(
        carry, reverse_time(steps) if reverse else steps
    )
    return carry, reverse_time(ys) if reverse else ys


def _scan_backend(cell: Cell, cell_vjp: CellVJP, carry: Carry) -> ScanBackend:
    del cell, carry
    return ScanBackend(cell_vjp)
