"""The loss function of a cell with a flax readout, and an optional flax embedding."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tbptt.numerics import sum_dtype, zero_where_masked
from tbptt.types import Batch, Carry, Cell, LossFn, Params, PRNGKey, UnrollFn
from tbptt.unroll import unroll as default_unroll
from tbptt.unroll.block_size import bytes_of
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

# (outputs [T, *batch, ...], targets [T, *batch, ...]) -> losses [T, *batch], one per step
StepLoss = Callable[[Any, Any], Float[Array, "T *batch"]]


class SequenceParams(NamedTuple):
    """Parameters of a sequence loss.

    cell:      the params of the cell
    readout:   the variables of the flax readout
    embedding: the variables of the flax embedding; () if there is none
    """

    cell: Params
    readout: Params
    embedding: Params = ()


def init_params(
    key: PRNGKey, cell: Cell, readout: nn.Module, embedding: nn.Module | None = None
) -> SequenceParams:
    """Draw the parameters of a cell, its readout and its embedding.

    Args:
      key: consumed.
      cell: static; a `Cell`.
      readout: static; a flax linen module on the output of the cell `[..., H]`.
      embedding: static; a flax linen module on integer symbols `[...]`, or None.

    Returns:
      `SequenceParams`.

    Raises:
      TypeError: readout or embedding is no flax linen module.
      ValueError: the output of the embedding is not `[..., cell.input_dim]`.

    Example:
      >>> import flax.linen as nn, jax, tbptt
      >>> cell, readout = tbptt.LSTM(2, 8), nn.Dense(1)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> params.readout["params"]["kernel"].shape
      (8, 1)
    """
    for name, module in (("readout", readout), ("embedding", embedding)):
        if not isinstance(module, nn.Module | None):
            raise TypeError(
                f"{name} must be a flax linen module; got {type(module).__name__}. With modules of "
                "another library write the loss function yourself, (params, carry, batch) -> "
                "(loss_sum, carry), and call tbptt.unroll in it"
            )
    cell_key, readout_key, embedding_key = jax.random.split(key, 3)
    params = cell.init(cell_key)
    carry, x = cell.initial_carry(), jnp.zeros((cell.input_dim,))
    _, y = jax.eval_shape(cell, params, carry, x)
    embedded = () if embedding is None else embedding.init(embedding_key, jnp.zeros((), jnp.int32))
    if embedding is not None:
        size = jax.eval_shape(embedding.apply, embedded, jnp.zeros((), jnp.int32)).shape
        if size != (cell.input_dim,):
            raise ValueError(
                f"embedding must return [*batch, D] with D = cell.input_dim = {cell.input_dim}; "
                f"got {size} for one symbol"
            )
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
    """Compute the outputs of embedding, cell and readout for a batch.

        xs = embedding(inputs)
        carry, ys = unroll(cell, params.cell, carry, xs, resets=resets, mask=mask)
        outputs = readout(ys)

    Args:
      cell, readout, embedding, remat, unroll: static; as for `sequence_loss`.
      params: `SequenceParams`.
      carry: the carry that enters the first step, leaves `[*batch, ...]`.
      batch: a `Batch`; its inputs, resets and mask are used, its targets and weights are not.

    Returns:
      `(carry, outputs)`: the carry that leaves the last step, and the outputs `[T, *batch, ...]`.

    Raises:
      TypeError, ValueError: inputs, carry, resets or mask do not fit the cell, as `unroll`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, tbptt
      >>> cell, readout = tbptt.GRU(2, 8), nn.Dense(1)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> batch = tbptt.Batch(jnp.ones((10, 4, 2)), targets=None)
      >>> carry, outputs = tbptt.predict(cell, readout, params, cell.initial_carry((4,)), batch)
      >>> outputs.shape, carry.h.shape
      ((10, 4, 1), (4, 8))
    """
    xs: Any = batch.inputs if embedding is None else embedding.apply(params.embedding, batch.inputs)
    carry, ys = unroll(
        cell, params.cell, carry, xs, resets=batch.resets, mask=batch.mask, remat=remat
    )
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
    """Return the loss function of a cell with a readout: the weighted sum over the steps.

        carry, outputs = predict(cell, readout, params, carry, batch)
        loss_sum = sum_t mask_t w_t loss(outputs_t, targets_t)

    A step that is masked or has weight 0 does not count, even if its target is NaN.

    Args (all static):
      cell: a `Cell`.
      readout: flax linen module on the output of the cell `[..., H]`, for example `nn.Dense(1)`.
      loss: loss per step, `(outputs, targets) -> [T, *batch]`: `squared_error`, or optax's
        `softmax_cross_entropy_with_integer_labels`.
      embedding: flax linen module on integer inputs `[T, *batch]`, for example
        `nn.Embed(82, cell.input_dim)`.
      remat: which intermediates the backward pass recomputes. None: those within a step where that
        is faster, see `unroll`; otherwise none. `CarriesOnly()`: those within a step. `Segments()`:
        all but the carries between segments, those of the readout included.
        `MemoryBudget(bytes)`: as few as fit.
      unroll: the function that runs the cell through time: `tbptt.unroll`, `tbptt.plain_unroll`,
        `tbptt.parallel_unroll`, `tbptt.newton_unroll`, or that of a backend
        (`tbptt.backends.numba_cpu.unroll`).

    Returns:
      A `LossFn` `(params, carry, batch) -> (loss_sum, carry)` of `SequenceParams`, see
      `init_params`. loss_sum is a scalar, in the unit of `loss`.

    Raises:
      TypeError, ValueError: at the call: `loss` does not return one number per step, weights,
        resets or mask are not `[T, *batch]`, or inputs and carry do not fit the cell.

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
    original = inspect.unwrap(loss)
    loss_name = getattr(original, "__qualname__", repr(original))
    # Segments rematerialise the readout too, so they wrap the whole loss function, see below.
    cell_remat = remat if isinstance(remat, CarriesOnly) else None

    def loss_fn(
        params: SequenceParams, carry: Carry, batch: Batch
    ) -> tuple[Float[Array, ""], Carry]:
        _check_step_shape(batch, embedding)
        xs: Any = (
            batch.inputs if embedding is None else embedding.apply(params.embedding, batch.inputs)
        )
        carry, ys = unroll(
            cell, params.cell, carry, xs, resets=batch.resets, mask=batch.mask, remat=cell_remat
        )
        outputs: Any = readout.apply(params.readout, ys)
        weights = _effective_weights(batch)
        # The derivative of a loss at a NaN target is NaN, and a weight of 0 would not remove it.
        counts = None if weights is None else weights != 0
        losses = loss(outputs, zero_where_masked(batch.targets, counts))
        shape = np.shape(batch.inputs) if embedding is not None else np.shape(batch.inputs)[:-1]
        if np.shape(losses) != shape:
            raise ValueError(
                f"{loss_name} must return one number per step, [T, *batch] = {shape}; got shape "
                f"{np.shape(losses)} from outputs {np.shape(outputs)} and targets "
                f"{np.shape(batch.targets)}. Sum or average over the last axis"
            )
        dtype = sum_dtype(losses.dtype)
        if weights is None:
            return jnp.sum(losses, dtype=dtype), carry
        weighted = zero_where_masked(losses, counts).astype(dtype) * weights.astype(dtype)
        return jnp.sum(weighted), carry

    if not isinstance(remat, Segments | MemoryBudget):
        return loss_fn

    def planned_loss_fn(
        params: SequenceParams, carry: Carry, batch: Batch
    ) -> tuple[Float[Array, ""], Carry]:
        _check_step_shape(batch, embedding)
        plan = memory_plan(cell, readout, params, batch, embedding=embedding, remat=remat).remat
        if isinstance(plan, Segments):
            return _loss_in_segments(loss_fn, plan)(params, carry, batch)
        planned = sequence_loss(cell, readout, loss, embedding=embedding, remat=plan, unroll=unroll)
        return planned(params, carry, batch)

    return planned_loss_fn


def _loss_in_segments(loss_fn: LossFn, plan: Segments) -> LossFn:
    """Rematerialise each segment of a loss function as a whole; it is additive over time."""

    def run(params: Params, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        def run_segment(
            state: tuple[Array, Carry], segment: Batch
        ) -> tuple[tuple[Array, Carry], tuple[()]]:
            total, carry = state
            loss_sum, carry = loss_fn(params, carry, segment)
            return (total + loss_sum, carry), ()

        zero = jnp.zeros_like(jax.eval_shape(loss_fn, params, carry, batch)[0])
        state, _ = in_segments(run_segment, plan, np.shape(batch.inputs)[0])((zero, carry), batch)
        return state

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

    Args:
      cell, readout, embedding, remat: static; as for `sequence_loss`.
      params, batch: as for the loss function, or their `jax.eval_shape`; only shapes are used.

    Returns:
      A `MemoryPlan`: the plan (for a budget, the one it chooses), its predicted temporary bytes,
      and the forward passes that it adds. For the actual allocation of XLA see
      `jax.jit(f).lower(...).compile().memory_analysis().temp_size_in_bytes`.

    Raises:
      ValueError: no plan fits the budget.
    """
    inputs = jax.eval_shape(lambda b: b.inputs, batch)
    symbols = embedding is not None
    batch_shape = inputs.shape[1:] if symbols else inputs.shape[1:-1]
    carry = jax.eval_shape(lambda: cell.initial_carry(batch_shape))
    x = jax.ShapeDtypeStruct((*batch_shape, cell.input_dim), jax.tree.leaves(carry)[0].dtype)
    _, y = jax.eval_shape(cell, params.cell, carry, x)
    outputs = jax.eval_shape(readout.apply, params.readout, y)
    # Bytes per step outside of the cell: outputs and embedded inputs, with their cotangents.
    outer = 2 * (bytes_of(outputs) + (bytes_of(x) if symbols else 0))
    T, sizes = inputs.shape[0], step_bytes(cell, params.cell, batch_shape, x, outer)
    shapes = jax.eval_shape(lambda b: b, batch)
    return plan_memory(remat, sizes._replace(inputs=bytes_of(shapes) // max(T, 1)), T)


def squared_error(
    outputs: Float[Array, "*steps K"], targets: Float[Array, "*steps K"]
) -> Float[Array, "*steps"]:
    """Compute the mean of (outputs - targets)^2 over the last axis, one number per step.

    As in `optax.squared_error`, there is no factor 1/2.

    Raises:
      ValueError: outputs and targets have different shapes.
    """
    if np.shape(outputs) != np.shape(targets):
        raise ValueError(
            f"targets must have the shape of the outputs, {np.shape(outputs)}; got "
            f"{np.shape(targets)}. A single target needs a last axis of size 1: targets[..., None]"
        )
    return jnp.mean(optax.squared_error(outputs, targets), axis=-1)


def _check_step_shape(batch: Batch, embedding: nn.Module | None) -> None:
    """Raise a ValueError unless weights, resets and mask have exactly the shape `[T, *batch]`.

    A weight of another shape would be broadcast against the losses, and steps counted many times.
    """
    inputs = np.shape(batch.inputs)
    shape = inputs if embedding is not None else inputs[:-1]
    for name in ("weights", "resets", "mask"):
        flags = getattr(batch, name)
        if flags is not None and np.shape(flags) != shape:
            raise ValueError(
                f"batch.{name} must be [T, *batch] = {shape}, one number per step of inputs "
                f"{inputs}; got shape {np.shape(flags)}. Weight or mask outputs inside the loss"
            )


def _effective_weights(batch: Batch) -> Array | None:
    """Return the weights `[T, *batch]`, 0 at masked steps; None = 1 everywhere."""
    if batch.mask is None:
        return None if batch.weights is None else jnp.asarray(batch.weights)
    weights = (
        jnp.ones(np.shape(batch.mask)) if batch.weights is None else jnp.asarray(batch.weights)
    )
    return jnp.where(batch.mask, weights, 0)
