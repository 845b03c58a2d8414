"""From a cell to a loss: cell, readout and per-step loss become a `LossFn`. Readouts and embeddings are flax modules."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tbptt.types import Batch, Carry, Cell, LossFn, Params, PRNGKey
from tbptt.unroll import CarriesOnly, MemoryBudget, MemoryPlan, Remat, plan_memory, segmented, step_bytes, unroll
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
) -> tuple[Carry, Any]:
    """Runs embedding, cell and readout over a batch (its targets and weights are not looked at).

        xs = embedding(inputs);  carry, ys = unroll(cell, params.cell, carry, xs);  outputs = readout(ys)

    Returns:
      (carry, outputs) with outputs `[T, *batch, ...]`.
    """
    inputs: Any = batch.inputs if embedding is None else embedding.apply(params.embedding, batch.inputs)
    carry, ys = unroll(cell, params.cell, carry, inputs, resets=batch.resets, mask=batch.mask, remat=remat)
    return carry, readout.apply(params.readout, ys)


def sequence_loss(
    cell: Cell,
    readout: nn.Module,
    loss: StepLoss,
    *,
    embedding: nn.Module | None = None,
    remat: Remat | MemoryBudget | None = None,
) -> LossFn:
    """Makes the loss function of a cell with a readout: the weighted sum of the steps' losses.

        carry, outputs = predict(cell, readout, params, carry, batch)
        loss_sum = sum_t mask_t w_t loss(outputs_t, targets_t)

    A step of weight 0, or masked out, counts for nothing, even where its target is NaN.

    Args (all static):
      cell: `Cell`.
      readout: flax linen module on the cell's output `[..., H]`, for example `nn.Dense(1)`.
      loss: per step, `(outputs, targets) -> [T, *batch]`: `squared_error`, or optax's
        `softmax_cross_entropy_with_integer_labels`.
      embedding: flax linen module on integer inputs `[T, *batch]`, for example `nn.Embed(82, cell.input_dim)`.
      remat: what is computed again in the backward pass: None nothing, `CarriesOnly()` the insides of a step, `Segments()`
        all but the carries between segments, the readout with them; `MemoryBudget(bytes)` as little as fits.

    Returns:
      A `LossFn` of `SequenceParams`, see `init_params`.

    Raises:
      ValueError, at the call: `loss` returned something else than one number a step, or sizes disagree.
    """
    loss_name = getattr(loss, "__qualname__", repr(loss))

    def piece(params: SequenceParams, lean: Remat | None, carry: Carry, batch: Batch) -> tuple[Carry, Array]:
        carry, outputs = predict(cell, readout, params, carry, batch, embedding=embedding, remat=lean)
        weights = _effective_weights(batch)
        targets = batch.targets if weights is None else _without_nan_at_zero(batch.targets, weights)
        losses = loss(outputs, targets)
        shape = np.shape(batch.inputs) if embedding is not None else np.shape(batch.inputs)[:-1]
        if np.shape(losses) != shape:
            raise ValueError(
                f"{loss_name} must return one number a step, [T, *batch] = {shape}; got shape {np.shape(losses)} from "
                f"outputs {np.shape(outputs)} and targets {np.shape(batch.targets)}: sum or average over the last axis"
            )
        if weights is None:
            return carry, losses
        return carry, jnp.where(weights != 0, losses, 0) * weights.astype(losses.dtype)

    def loss_fn(params: SequenceParams, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        _check_counts(batch)
        plan: Any = remat
        if isinstance(remat, MemoryBudget):
            plan = memory_plan(cell, readout, params, batch, embedding=embedding, remat=remat).remat
        lean = plan if isinstance(plan, CarriesOnly) else None
        run = segmented(functools.partial(piece, params, lean), plan, np.shape(batch.inputs)[0])
        carry, losses = run(carry, batch)
        return jnp.sum(losses), carry

    return loss_fn


def memory_plan(
    cell: Cell,
    readout: nn.Module,
    params: SequenceParams,
    batch: Batch,
    *,
    embedding: nn.Module | None = None,
    remat: Remat | MemoryBudget | None = None,
) -> MemoryPlan:
    """Says what a plan, or the plan that a budget chooses, will need for one gradient of a `sequence_loss`.

    Args: as for `sequence_loss`; of params and batch (or their jax.eval_shape) the shapes count alone.

    Returns:
      A `MemoryPlan`: the plan, its predicted temporary bytes, and the forward passes that it adds. What XLA then really
      allocates is `jax.jit(f).lower(...).compile().memory_analysis().temp_size_in_bytes`.

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


def _without_nan_at_zero(targets: Any, weights: Array) -> Any:
    """Zeroes targets at steps that do not count: the derivative of a loss at NaN is NaN, and 0 * NaN would spread it."""

    def clean(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return jnp.where(weights.reshape(weights.shape + (1,) * (leaf.ndim - weights.ndim)) != 0, leaf, 0)

    return jax.tree.map(clean, targets)
