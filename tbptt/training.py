"""Training through time: one jitted step a chunk, or one compiled program for a whole epoch of chunks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from tbptt.numerics import global_norm
from tbptt.types import Batch, Carry, Estimator, Memory, Params, PRNGKey
from tbptt.windows import check_window, cut


class TrainState(NamedTuple):
    """All that a run needs to go on.

    params, opt_state: what is learnt, and the optimizer's state
    memory: the estimator's, with the carry that crosses the cut
    step:   scalar, updates so far
    key:    for estimators that draw; None otherwise
    """

    params: Params
    opt_state: Any
    memory: Memory
    step: Int[Array, ""]
    key: PRNGKey | None = None


class Metrics(NamedTuple):
    """What one update looked like, on device; all but info scalars (`[n]` after an epoch of n updates).

    loss:       weighted mean over the chunk, before the update
    grad_norm:  global norm of the estimated gradient, before clipping
    clipped:    whether the optimizer clipped it; None unless its chain has a `clipping.with_clip_stats` transformation
    non_finite: whether loss or gradient holds NaN or inf
    info:       the estimator's info of this update; after an epoch every leaf of it has a leading axis `[n]`
    """

    loss: Float[Array, "*n"]
    grad_norm: Float[Array, "*n"]
    clipped: Bool[Array, "*n"] | None
    non_finite: Bool[Array, "*n"]
    info: Any


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    params: Params,
    carry: Carry,
    batch: Batch,
    key: PRNGKey | None = None,
) -> TrainState:
    """Makes the state before the first update.

    Args:
      params: the starting parameters; copied, because a train step donates (overwrites) the state it is given.
      carry: what enters the first step, for example `cell.initial_carry((B,))`.
      batch: an example of what will be fed (or its `jax.eval_shape`): for shapes only.
      key: for estimators that draw; consumed.
    """
    params, carry, key = jax.tree.map(jnp.copy, (params, carry, key))
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        memory=estimator.init(params, carry, batch),
        step=jnp.zeros((), jnp.int32),
        key=key,
    )


def rewind(estimator: Estimator, state: TrainState, carry: Carry, batch: Batch) -> TrainState:
    """Forgets the stream but nothing that was learnt: the next chunk begins at `carry`, as at the start of an epoch."""
    return state._replace(memory=estimator.init(state.params, jax.tree.map(jnp.copy, carry), batch))


def make_train_step(estimator: Estimator, optimizer: optax.GradientTransformation) -> TrainStep:
    """Makes the jitted update of one chunk; the state is donated, so use only the one it returns.

        gradient = estimator.estimate(params, memory, batch)
        updates, opt_state = optimizer.update(gradient.grads, opt_state, params)
        params, memory, step = params + updates, gradient.memory, step + 1

    Args (static): estimator, optimizer (clip by `optax.chain(optax.clip_by_global_norm(g_max), optax.adam(lr))`).

    Returns:
      `step(state, batch) -> (state, metrics)`. Compiled once for each shape of batch.
    """
    return jax.jit(_make_update(estimator, optimizer), donate_argnums=0)


def make_train_epoch(estimator: Estimator, optimizer: optax.GradientTransformation, chunk: int) -> TrainStep:
    """Makes the jitted pass over many chunks with an update after each: one program, a scan over chunks.

        for window in cut(batch, chunk):
            state, metrics[i] = step(state, window)

    The carry is handed from chunk to chunk, and on to the next call: `rewind` at the start of a new pass.

    Args (static): estimator; optimizer; chunk, steps an update, which must divide T (a multiple of the estimator's k1).

    Returns:
      `epoch(state, batch) -> (state, metrics)`; batch `[T, *batch, ...]`, metrics `[T // chunk]`; the state is donated.
    """
    chunk = check_window("chunk", chunk)
    update = _make_update(estimator, optimizer)

    def epoch(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(update, state, cut(batch, chunk, name="chunk"))

    return jax.jit(epoch, donate_argnums=0)


def _make_update(estimator: Estimator, optimizer: optax.GradientTransformation) -> TrainStep:
    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        use, keep = (None, None) if state.key is None else jax.random.split(state.key)
        gradient = estimator.estimate(state.params, state.memory, batch, use)
        updates, opt_state = optimizer.update(gradient.grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grad_norm = global_norm(gradient.grads)
        metrics = Metrics(
            loss=gradient.loss,
            grad_norm=grad_norm,
            clipped=optax.tree_utils.tree_get(opt_state, "clipped", default=None),
            # The norm is inf or NaN exactly where an entry is: no second pass over the gradient.
            non_finite=~(jnp.isfinite(gradient.loss) & jnp.isfinite(grad_norm)),
            info=gradient.info,
        )
        return TrainState(params, opt_state, gradient.memory, state.step + 1, keep), metrics

    return update
