"""A cell through time, with resets, masks, reverse, and a plan for memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float

from tbptt.checks import check_sequence
from tbptt.engine.any_cell import AnyBackprop, backprop_of
from tbptt.engine.backprop import backprop_scan
from tbptt.engine.budget import MemoryBudget as MemoryBudget
from tbptt.engine.budget import MemoryPlan as MemoryPlan
from tbptt.engine.budget import plan_memory as plan_memory
from tbptt.engine.budget import step_bytes as step_bytes
from tbptt.engine.plan import CarriesOnly as CarriesOnly
from tbptt.engine.plan import Remat as Remat
from tbptt.engine.plan import Segments as Segments
from tbptt.engine.scan import Steps, plain_scan
from tbptt.engine.sizes import steps_kept
from tbptt.native import loops_of
from tbptt.types import Carry, Cell, LayeredCell, Params
from tbptt.windows import in_pieces


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
    """Runs a cell over a sequence, fast in both directions of time.

        for t in range(T):                                   # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue              # the step does not exist: the carry is held
            if resets[t]: carry = cell.initial_carry()       # no gradient crosses it
            carry, ys[t] = cell(params, carry, xs[t])

    (each `if` elementwise over *batch). Whatever stands in xs at masked steps, NaN included, changes nothing.

    For a cell with a backward pass of its own (`Elman`, `GRU`, `LSTM`), and for any cell under `CarriesOnly()`, the input
    side and the weights' gradient of many steps are one matrix product each, outside the loops over time. A `Stack` runs
    layer after layer. On a CPU with numba installed float32 layers run as loops compiled for it, but for wide ones of a
    few lanes (`tbptt.native.sizes`); such a program cannot be serialised by `jax.export`, one of `plain_unroll` can. One
    step, T = 1, is a plain scan and can be differentiated forwards too. Values and gradients are those of `plain_unroll`,
    to rounding.

    Args:
      cell: static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is legal and returns the carry.
      resets, mask: `[T, *batch]` booleans; None = no resets, every step exists.
      reverse: static; run from the last step to the first. ys[t] still belongs to xs[t].
      remat: static; what is computed again in the backward pass: None nothing, but for gates that are faster computed
        again than fetched (on CPU, sequences that leave the cache); `CarriesOnly()` the insides of a step, `Segments()`
        all but the carries between segments; `MemoryBudget(bytes)` as little as fits.

    Returns:
      (carry, ys): the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: rank, sizes or dtypes of xs, carry, resets or mask do not fit the cell; the message names which.
      TypeError: xs, resets or mask are of the wrong dtype.
    """
    steps = _steps(cell, params, carry, xs, resets, mask)
    shape, dtype = steps.xs.shape, steps.xs.dtype
    if isinstance(remat, MemoryBudget):
        sizes = step_bytes(cell, params, shape[1:-1], jax.ShapeDtypeStruct(shape[1:], dtype))
        remat = plan_memory(remat, sizes, shape[0]).remat
    run = functools.partial(_run, cell, isinstance(remat, CarriesOnly), params)
    run = segmented(run, remat, shape[0])
    carry, ys = run(carry, _flipped(steps) if reverse else steps)
    return carry, _flipped(ys) if reverse else ys


def segmented(
    run: Callable[[Any, Any], tuple[Any, Any]], remat: Remat | None, T: int
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Makes `run(carry, steps) -> (carry, out)` forget what it did within each segment, and do it again when needed."""
    for length in reversed(remat.lengths(T)) if isinstance(remat, Segments) else ():
        run = functools.partial(in_pieces, jax.checkpoint(run), piece=length)
    return run


def plain_unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
) -> tuple[Carry, Any]:
    """Runs a cell over a sequence by `jax.lax.scan` and nothing else: the definition that `unroll` is checked against.

    The same arguments, results and errors as `unroll`. Slower to differentiate, but in every mode: forward mode
    (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) cannot pass the hand-written backward pass of `unroll` over T > 1 steps.
    """
    steps = _steps(cell, params, carry, xs, resets, mask)
    step, initial = functools.partial(cell, params), cell.initial_carry(steps.xs.shape[1:-1])
    carry, ys = plain_scan(step, initial, carry, _flipped(steps) if reverse else steps)
    return carry, _flipped(ys) if reverse else ys


def _steps(cell: Cell, params: Params, carry: Carry, xs: Any, resets: Any, mask: Any) -> Steps:
    """Checks at the door, and cleans what stands at steps that do not exist."""
    xs = jnp.asarray(xs)
    check_sequence(cell, params, carry, xs, resets, mask)
    if mask is not None:
        mask = jnp.asarray(mask)
        xs = jnp.where(mask[..., None], xs, 0)  # NaN padding would reach the weights' gradient as 0 * NaN
    return Steps(xs, None if resets is None else jnp.asarray(resets), mask)


def _run(cell: Cell, lean: bool, params: Params, carry: Carry, steps: Steps) -> tuple[Carry, Any]:
    """Runs one cell, or the cells of a stack one after another: each reads the whole sequence of the one below."""
    if isinstance(cell, LayeredCell):
        carries = []
        for layer, p, c in zip(cell.cells, params, carry, strict=True):
            c, ys = _run(layer, lean, p, c, steps)
            carries.append(c)
            steps = steps._replace(xs=ys)
        return tuple(carries), steps.xs
    batch_shape, T = steps.xs.shape[1:-1], steps.xs.shape[0]
    initial = functools.partial(cell.initial_carry, batch_shape)
    back, leaves = backprop_of(cell), jax.tree.leaves((params, carry))
    floating = all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves)
    # One step has no loop to take anything out of; and the plain scan can be differentiated forwards, as online estimators
    # do. Without a backward pass of the cell's own, computing a step again costs more than JAX's intermediates do.
    if T <= 1 or not floating or (isinstance(back, AnyBackprop) and not lean):
        return plain_scan(functools.partial(cell, params), initial(), carry, steps)

    keep = not lean and T < steps_kept(back, params, carry, steps.xs[0])
    return backprop_scan(loops_of(back, carry), initial, keep, params, carry, steps)


def _flipped(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[::-1], tree)
