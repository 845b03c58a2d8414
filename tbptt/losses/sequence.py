"""From a cell to a loss: cell, readout and per-step loss become a `LossFn`. Readouts and embeddings are flax modules."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tbptt.numerics import expand
from tbptt.types import Batch, Carry, Cell, LossFn, Params, PRNGKey, UnrollFn
from tbptt.unroll import unroll as default_unroll
from tbptt.unroll.remat import (
    CarriesOnly,
    MemoryBudget,
    MemoryPlan,
    Remat,
    Segments,
    in_segments,
    plan_memory,
    step_bytes,
)
from tbptt.windows import step_shape

# (outputs [T, *batch, ...], targets [T, *batch, ...]) -> losses [T, *batch], one number a step
StepLoss = Callable[[Any, Any], Float[Array, "T *batch"]]


class SequenceParams(NamedTuple):
    """cell: the cell's params; readout, embedding: the variables of the flax modules (embedding: () if there is none)."""

    cell: Params
    readout: Params
    embedding: Params = ()


def init_params(key: PRNGKey, cell: Cell, readout: nn.Module, embedding: nn.Module | None = None) -> SequenceParams:
    """Draws the parameters of cell, readout and embedding. The key is consumed.

    Raises:
      ValueError: the embedding's output size is not the cell's input_dim.
    """
    cell_key, readout_key, embedding_key = jax.random.split(key, 3)
    params = cell.init(cell_key)
    carry, x = cell.initial_carry(), jnp.zeros((cell.input_dim,))
    _, y = jax.eval_shape(cell, params, carry, x)
    embedded = () if embedding is None else embedding.init(embedding_key, jnp.zeros((), jnp.int32))
    if embedding is not None:
        size = jax.eval_shape(embedding.apply, embedded, jnp.zeros((), jnp.int32)).shape
        if size != (cell.input_dim,):
            raise ValueError(f"embedding must give [*batch, D] with D = cell.input_dim = {cell.input_dim}; got {size}")
    return SequenceParams(params, readout.init(readout_key, jnp.zeros(y.shape, y.dtype)), embedded)


def predict(
    cell: Cell,
    readout: nn.Module,
    params: SequenceParams,
    carry: Carry,
    batch: Batch,
    *,
    embedding: nn.Module | None = None,
    remat: Remat | MemoryBudget | None = None,
    unroll: UnrollFn = default_unroll,
) -> tuple[Carry, Any]:
    """Compute the outputs of embedding, cell and readout for a batch; its targets and weights are not used.

        xs = embedding(inputs);  carry, ys = unroll(cell, params.cell, carry, xs);  outputs = readout(ys)

    Args:
      cell, readout, embedding, remat, unroll: as for `sequence_loss`; static.
      params: `SequenceParams`.
      carry: the carry that enters the first step.
      batch: a `Batch`; inputs, resets and mask are used.

    Returns:
      `(carry, outputs)` with outputs `[T, *batch, ...]`.
    """
    xs: Any = batch.inputs if embedding is None else embedding.apply(params.embedding, batch.inputs)
    carry, ys = unroll(cell, params.cell, carry, xs, resets=batch.resets, mask=batch.mask, remat=remat)
    return carry, readout.apply(params.readout, ys)


def sequence_loss(
    cell: Cell,
    readout: nn.Module,
    loss: StepLoss,
    *,
    embedding: nn.Module | None = None,
    remat: Remat | MemoryBudget | None = None,
    unroll: UnrollFn = default_unroll,
) -> LossFn:
    """Make the loss function of a cell with a readout: the weighted sum of the losses of the steps.

        carry, outputs = predict(cell, readout, params, carry, batch)
        loss_sum = sum_t mask_t w_t loss(outputs_t, targets_t)

    A step that is masked or has weight 0 does not count, even if its target is NaN.

    Args (all static):
      cell: a `Cell`.
      readout: flax linen module on the output of the cell `[..., H]`, for example `nn.Dense(1)`.
      loss: loss per step, `(outputs, targets) -> [T, *batch]`: `squared_error`, or optax's
        `softmax_cross_entropy_with_integer_labels`.
      embedding: flax linen module on integer inputs `[T, *batch]`, for example `nn.Embed(82, cell.input_dim)`.
      remat: which intermediates the backward pass recomputes. None: as few as is fast. `CarriesOnly()`: those within a
        step. `Segments()`: all but the carries between segments, those of the readout included. `MemoryBudget(bytes)`: as
        few as fit.
      unroll: the function that runs the cell through time: `tbptt.unroll`, `tbptt.plain_unroll`, `tbptt.parallel_unroll`,
        `tbptt.newton_unroll`, or that of a backend (`tbptt.backends.numba_cpu.unroll`).

    Returns:
      A `LossFn` of `SequenceParams`, see `init_params`.

    Raises:
      ValueError: at the call, if `loss` does not return one number a step, or sizes disagree.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, tbptt
      >>> cell, readout = tbptt.GRU(2, 8), nn.Dense(1)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
      >>> batch = tbptt.Batch(jnp.ones((10, 4, 2)), jnp.zeros((10, 4, 1)))
      >>> loss_sum, carry = loss_fn(params, cell.initial_carry((4,)), batch)
      >>> loss_sum.shape, carry.h.shape
      ((), (4, 8))
    """
    loss_name = getattr(loss, "__qualname__", repr(loss))
    within = remat if isinstance(remat, CarriesOnly) else None

    def loss_fn(params: SequenceParams, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        _check_counts(batch)
        xs: Any = batch.inputs if embedding is None else embedding.apply(params.embedding, batch.inputs)
        carry, ys = unroll(cell, params.cell, carry, xs, resets=batch.resets, mask=batch.mask, remat=within)
        outputs = readout.apply(params.readout, ys)
        weights = _effective_weights(batch)
        losses = loss(outputs, batch.targets if weights is None else _zero_uncounted(batch.targets, weights))
        shape = np.shape(batch.inputs) if embedding is not None else np.shape(batch.inputs)[:-1]
        if np.shape(losses) != shape:
            raise ValueError(
                f"{loss_name} must return one number a step, [T, *batch] = {shape}; got shape {np.shape(losses)} from "
                f"outputs {np.shape(outputs)} and targets {np.shape(batch.targets)}: sum or average over the last axis"
            )
        if weights is None:
            return jnp.sum(losses), carry
        return jnp.sum(jnp.where(weights != 0, losses, 0) * weights.astype(losses.dtype)), carry

    if not isinstance(remat, Segments | MemoryBudget):
        return loss_fn

    def planned_loss_fn(params: SequenceParams, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        _check_counts(batch)
        plan = memory_plan(cell, readout, params, batch, embedding=embedding, remat=remat).remat
        if isinstance(plan, Segments):
            return _loss_in_segments(loss_fn, plan)(params, carry, batch)
        return sequence_loss(cell, readout, loss, embedding=embedding, remat=plan, unroll=unroll)(params, carry, batch)

    return planned_loss_fn


def _loss_in_segments(loss_fn: LossFn, plan: Segments) -> LossFn:
    """Rematerialise each segment of a loss function, which is additive over time, as a whole."""

    def run(params: Params, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        def segment(carry: Carry, part: Batch) -> tuple[Carry, Array]:
            loss_sum, carry = loss_fn(params, carry, part)
            return carry, loss_sum[None]

        carry, sums = in_segments(segment, plan, np.shape(batch.inputs)[0])(carry, batch)
        return jnp.sum(sums), carry

    return run


def memory_plan(
    cell: Cell,
    readout: nn.Module,
    params: SequenceParams,
    batch: Batch,
    *,
    embedding: nn.Module | None = None,
    remat: Remat | MemoryBudget | None = None,
) -> MemoryPlan:
    """Predict the memory of one gradient of a `sequence_loss` that runs its cell by `tbptt.unroll`.

    Args: as for `sequence_loss`; only the shapes of params and batch (or their `jax.eval_shape`) are used.

    Returns:
      A `MemoryPlan`: the plan (the one a budget chooses), its predicted temporary bytes, and the forward passes it adds.
      What XLA then allocates is `jax.jit(f).lower(...).compile().memory_analysis().temp_size_in_bytes`.

    Raises:
      ValueError: no plan fits the budget.
    """
    inputs = jax.eval_shape(lambda b: b.inputs, batch)
    symbols = embedding is not None
    batch_shape = inputs.shape[1:] if symbols else inputs.shape[1:-1]
    dtype = jax.eval_shape(lambda: cell.initial_carry(batch_shape))
    x = jax.ShapeDtypeStruct((*batch_shape, cell.input_dim), jax.tree.leaves(dtype)[0].dtype)
    _, y = jax.eval_shape(cell, params.cell, dtype, x)
    outputs = jax.eval_shape(readout.apply, params.readout, y)
    around = 2 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(outputs))
    around += 2 * math.prod(x.shape) * x.dtype.itemsize if symbols else 0
    return plan_memory(remat, step_bytes(cell, params.cell, batch_shape, x, around), inputs.shape[0])


def squared_error(outputs: Float[Array, "*steps K"], targets: Float[Array, "*steps K"]) -> Float[Array, "*steps"]:
    """Averages (outputs - targets)^2 over the last axis: one number a step (optax's `squared_error`, no factor 1/2)."""
    return jnp.mean(optax.squared_error(outputs, targets), axis=-1)


def _check_counts(batch: Batch) -> None:
    shape = step_shape(batch)
    if np.shape(batch.inputs)[: len(shape)] != shape:
        raise ValueError(
            f"weights, resets and mask must be [T, *batch] like inputs {np.shape(batch.inputs)}; got shape {shape}"
        )


def _effective_weights(batch: Batch) -> Array | None:
    if batch.mask is None:
        return None if batch.weights is None else jnp.asarray(batch.weights)
    weights = jnp.ones(np.shape(batch.mask)) if batch.weights is None else jnp.asarray(batch.weights)
    return jnp.where(batch.mask, weights, 0)


def _zero_uncounted(targets: Any, weights: Array) -> Any:
    """Zero the targets of steps that do not count: the derivative of a loss at NaN is NaN, and 0 * NaN would spread it."""

    def clean(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return jnp.where(expand(weights, leaf) != 0, leaf, 0)

    return jax.tree.map(clean, targets)
