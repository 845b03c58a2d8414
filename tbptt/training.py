"""Train steps: one jitted update per chunk, or one compiled program for an epoch of chunks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from tbptt.numerics import global_norm, select
from tbptt.types import Batch, Carry, Estimator, Memory, Params, PRNGKey
from tbptt.windows import check_positive_int, split_windows


class TrainState(NamedTuple):
    """State of a training run.

    params:    the trainable parameters
    opt_state: the state of the optimizer
    memory:    the memory of the estimator, including the carry that enters the next chunk
    step:      scalar, the number of updates so far
    key:       the key for estimators that draw random numbers; None otherwise
    """

    params: Params
    opt_state: Any
    memory: Memory
    step: Int[Array, ""]
    key: PRNGKey | None = None


class Metrics(NamedTuple):
    """Metrics of one update, as device arrays; scalars except `info`.

    After an epoch of n updates every field, and every leaf of info, has a leading axis `[n]`.

    loss:       weighted mean over the chunk, before the update
    grad_norm:  global norm of the estimated gradient, before clipping
    clipped:    whether the optimizer clipped the gradient; None if the optimizer does not report
      it, see `tbptt.optim.clip_by_global_norm` and `tbptt.optim.with_clip_stats`
    non_finite: whether the loss or the gradient holds NaN or inf
    info:       the info of the estimator for this update
    """

    loss: Float[Array, "*n"]
    grad_norm: Float[Array, "*n"]
    clipped: Bool[Array, "*n"] | None
    non_finite: Bool[Array, "*n"]
    info: Any


Optimizer = optax.GradientTransformation | optax.MultiSteps  # optax makes MultiSteps no subclass
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
    estimator: Estimator,
    optimizer: Optimizer,
    params: Params,
    carry: Carry,
    batch: Batch,
    key: PRNGKey | None = None,
) -> TrainState:
    """Return the state before the first update.

    Args:
      estimator: static; the estimator of the train step.
      optimizer: static; the optimizer of the train step.
      params: the initial parameters; copied, because a train step donates the state that it takes.
      carry: the carry that enters the first step, for example `cell.initial_carry((B,))`; copied.
      batch: an example of the batches to come, `[T, *batch, ...]`, or its `jax.eval_shape`; only
        its shapes are used.
      key: for estimators that draw random numbers; consumed. None for all others.

    Returns:
      A `TrainState` at step 0.

    Raises:
      TypeError: estimator is no `Estimator`, optimizer no optax transformation, or a leaf of params
        cannot be differentiated.
      TypeError, ValueError: raised by `estimator.init` or `optimizer.init`.
    """
    _check_parts(estimator, optimizer)
    _check_params(params)
    params, carry, key = jax.tree.map(jnp.copy, (params, carry, key))
    return TrainState(
        params=params,
        # Copied: some optimizers keep params in their state, and a buffer can be donated only once.
        opt_state=jax.tree.map(_copied, optimizer.init(params)),
        memory=estimator.init(params, carry, batch),
        step=jnp.zeros((), jnp.int32),
        key=key,
    )


def rewind(estimator: Estimator, state: TrainState, carry: Carry, batch: Batch) -> TrainState:
    """Restart the stream at `carry`, for example at the start of an epoch.

    Parameters, optimizer state, step and key remain. Only the memory of the estimator is replaced.

    Args:
      estimator: static; the estimator of the train step.
      state: a `TrainState`.
      carry: the carry that enters the next chunk; copied.
      batch: an example; only its shapes are used.

    Returns:
      The new `TrainState`.
    """
    memory = estimator.init(state.params, jax.tree.map(jnp.copy, carry), batch)
    return state._replace(memory=memory)


def make_train_step(estimator: Estimator, optimizer: Optimizer) -> TrainStep:
    """Return a jitted train step, which updates the parameters by the gradient of one chunk.

        gradient = estimator.estimate(params, memory, batch, key)
        updates, opt_state = optimizer.update(gradient.grads, opt_state, params)
        params, memory, step = params + updates, gradient.memory, step + 1

    A chunk is the batch of one update. If none of its time steps counts (weight 0 or mask False
    everywhere), params and opt_state do not change: the momentum of an optimizer would change
    params although there is no gradient.

    Args (static):
      estimator: any `Estimator`.
      optimizer: any optax transformation, for example
        `optax.chain(tbptt.optim.clip_by_global_norm(1.0), optax.adam(1e-3))`.

    Returns:
      `step(state, batch) -> (state, metrics)` with a batch `[T, *batch, ...]` and scalar `Metrics`.
      The step donates its state: do not use the old state after the call. It is compiled once for
      each shape of batch.

    Raises:
      TypeError: estimator is no `Estimator`, or optimizer no optax transformation.
      TypeError, ValueError: raised by `estimator.estimate` at the first call of `step`; at any
        call, the state was donated before.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax, tbptt
      >>> cell, readout, optimizer = tbptt.GRU(2, 8), nn.Dense(1), optax.adam(1e-3)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> batch = tbptt.Batch(jnp.ones((20, 4, 2)), jnp.zeros((20, 4, 1)))
      >>> loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
      >>> estimator = tbptt.truncated_bptt(loss_fn, k1=20, k2=20)
      >>> carry = cell.initial_carry((4,))
      >>> state = tbptt.init_state(estimator, optimizer, params, carry, batch)
      >>> step = tbptt.make_train_step(estimator, optimizer)
      >>> state, metrics = step(state, batch)
      >>> int(state.step), metrics.loss.shape
      (1, ())
    """
    _check_parts(estimator, optimizer)
    return _Donating(_make_update(estimator, optimizer))


def make_train_epoch(estimator: Estimator, optimizer: Optimizer, chunk: int) -> TrainStep:
    """Return a jitted pass over a batch, which makes one update per chunk.

        for i in range(T // chunk):                                    # compiled to one scan
            state, metrics[i] = step(state, batch[i * chunk : (i + 1) * chunk])

    The carry continues from chunk to chunk and from call to call. Call `rewind` to start again.

    Args (static):
      estimator: any `Estimator`.
      optimizer: any optax transformation, as for `make_train_step`.
      chunk: time steps per update; must divide T, and be a multiple of the k1 of the estimator.

    Returns:
      `epoch(state, batch) -> (state, metrics)` with a batch `[T, *batch, ...]` and `Metrics` of
      leading axis `[T // chunk]`. The epoch donates its state: do not use the old state after the
      call. It is compiled once for each shape of batch.

    Raises:
      TypeError, ValueError: chunk is not a static int >= 1; at the call of `epoch`: T is not a
        multiple of chunk, or as `estimator.estimate`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax, tbptt
      >>> cell, readout, optimizer = tbptt.GRU(2, 8), nn.Dense(1), optax.adam(1e-3)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> stream = tbptt.Batch(jnp.ones((60, 4, 2)), jnp.zeros((60, 4, 1)))
      >>> loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
      >>> estimator = tbptt.truncated_bptt(loss_fn, k1=10, k2=20)
      >>> carry = cell.initial_carry((4,))
      >>> state = tbptt.init_state(estimator, optimizer, params, carry, stream)
      >>> epoch = tbptt.make_train_epoch(estimator, optimizer, chunk=20)
      >>> state, metrics = epoch(state, stream)
      >>> int(state.step), metrics.loss.shape
      (3, (3,))
    """
    chunk = check_positive_int("chunk", chunk)
    _check_parts(estimator, optimizer)
    update = _make_update(estimator, optimizer)

    def epoch(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(update, state, split_windows(batch, chunk, name="chunk"))

    return _Donating(epoch)


class _Donating:
    """`jax.jit(function, donate_argnums=0)` that checks for a state that was donated before."""

    def __init__(self, function: TrainStep) -> None:
        functools.update_wrapper(self, function)
        self._jitted: Any = jax.jit(function, donate_argnums=0)
        self.lower, self.trace = self._jitted.lower, self._jitted.trace

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        n = state.step
        if isinstance(n, jax.Array) and not isinstance(n, Tracer) and n.is_deleted():
            raise ValueError(
                "the state was donated to an earlier call of a train step, which reuses its "
                "memory. Use the returned state, `state, metrics = step(state, batch)`, and copy "
                "what you keep: jax.tree.map(jnp.copy, state)"
            )
        return self._jitted(state, batch)


def _check_parts(estimator: Any, optimizer: Any) -> None:
    """Raise a TypeError if an estimator or an optimizer is something else."""
    if not (hasattr(estimator, "init") and hasattr(estimator, "estimate")):
        raise TypeError(
            "estimator must be an Estimator, for example tbptt.truncated_bptt(loss_fn, k1, k2); "
            f"got {type(estimator).__name__}"
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be an optax transformation, for example optax.adam(1e-3); got "
            f"{type(optimizer).__name__}"
        )


def _check_params(params: Params) -> None:
    """Raise a TypeError that names the first leaf of params that cannot be differentiated."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = f"params{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float | complex):
            raise TypeError(
                f"{name} must be an array; got {type(leaf).__name__}. "
                "Of a module that holds functions pass the arrays alone, and combine them again in "
                "the loss function (equinox: params, static = eqx.partition(model, "
                "eqx.is_inexact_array); eqx.combine(params, static))"
            )
        if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{name} must be floating, to be differentiated; got dtype {dtype}. Convert it, or "
                "leave it out of params and use it in the loss function as a constant"
            )


def _has_counted_step(batch: Batch) -> Bool[Array, ""] | None:
    """Return whether any time step counts in the loss; None, without a computation, if all do."""
    if batch.weights is None and batch.mask is None:
        return None
    weights = True if batch.weights is None else jnp.asarray(batch.weights) != 0
    return jnp.any(weights if batch.mask is None else jnp.logical_and(weights, batch.mask))


def _copied(leaf: Any) -> Any:
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf


def _any_clipped(before: Any, after: Any) -> Bool[Array, ""] | None:
    """Return whether a clipping of the optimizer clipped this update; None if none reports it.

    The field `clipped` of the state may be that of an earlier update: between its updates
    `optax.MultiSteps` does not change the state. The counts before and after are compared instead.
    """
    counts = [
        [value for _, value in optax.tree_utils.tree_get_all_with_path(state, "clip_count")]
        for state in (before, after)
    ]
    changed = [old != new for old, new in zip(*counts, strict=True)]
    return functools.reduce(jnp.logical_or, changed) if changed else None


def _make_update(estimator: Estimator, optimizer: Optimizer) -> TrainStep:
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    # Some optimizers need the loss or the loss function, others do not accept them.
    optimizer = optax.with_extra_args_support(optimizer)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        estimate_key, next_key = (None, None) if state.key is None else jax.random.split(state.key)
        gradient = estimator.estimate(state.params, state.memory, batch, estimate_key)

        def value_fn(params: Params) -> Float[Array, ""]:
            return estimator.estimate(params, state.memory, batch, estimate_key).loss

        updates, opt_state = optimizer.update(
            gradient.grads,
            state.opt_state,
            state.params,
            value=gradient.loss,
            grad=gradient.grads,
            value_fn=value_fn,
        )
        params: Any = optax.apply_updates(state.params, updates)
        if (counts := _has_counted_step(batch)) is not None:
            kept = (state.params, state.opt_state)
            params, opt_state = select(counts, (params, opt_state), kept)
        grad_norm = global_norm(gradient.grads)
        metrics = Metrics(
            loss=gradient.loss,
            grad_norm=grad_norm,
            clipped=_any_clipped(state.opt_state, opt_state),
            # The norm is inf or NaN exactly where an entry is: no second pass over the gradient.
            non_finite=~(jnp.isfinite(gradient.loss) & jnp.isfinite(grad_norm)),
            info=gradient.info,
        )
        return TrainState(params, opt_state, gradient.memory, state.step + 1, next_key), metrics

    return update
