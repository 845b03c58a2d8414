"""From settings and data to what the loop runs: model, estimator, optimizer, the step on its devices, the state."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import tbptt
from experiments.support.train.choices import ESTIMATORS
from experiments.support.train.data import RunData, training_stream
from experiments.support.train.model import Model, init_params, make_model
from experiments.support.train.task import Forecast
from tbptt.data import RecordingStream


class Setup(NamedTuple):
    """What a run is made of.

    model, stream: as their names say; chunk: steps an update; updates: in all, None if time is the limit
    state:  before the first update, on its devices, `[S, ...]` of several seeds
    step:   `(state, batch) -> (state, metrics)`
    put:    lays a batch out where the step wants it
    one:    metrics of several seeds as those of one: means, and whether any is not finite
    """

    model: Model
    stream: RecordingStream
    chunk: int
    updates: int | None
    state: tbptt.TrainState
    step: Callable[..., Any]
    put: Callable[[Any], Any]
    one: Callable[[tbptt.Metrics], tbptt.Metrics]


def build(config: Any, data: RunData) -> Setup:
    """Builds a run.

    Raises:
      ValueError: a flag does not fit the data, the model or the machine; names both.
    """
    model = make_model(data.task, config.cell, config.hidden, config.layers)
    mesh = tbptt.distributed.batch_mesh(config.devices) if config.devices > 1 or jax.process_count() > 1 else None
    loss_fn = _loss(config, data, model)
    loss_fn = loss_fn if mesh is None else tbptt.distributed.sharded_loss(loss_fn, model.cell.initial_carry, mesh)
    choice = ESTIMATORS[config.estimator]
    estimator, chunk = tbptt.optim.reset_on_non_finite(choice.make(loss_fn, config)), choice.chunk(config)
    stream = training_stream(
        data, config.lanes, chunk, None if mesh is None else tbptt.distributed.local_rows(config.lanes, mesh)
    )
    updates = None if config.epochs is None else max(1, math.ceil(config.epochs * len(stream)))
    optimizer = make_optimizer(config.lr, config.clip, updates)
    shapes = jax.tree.map(lambda a: (a.shape[2:], a.dtype), stream.chunk(0).batch, is_leaf=lambda a: hasattr(a, "dtype"))

    def make_state(lanes: int, key: jax.Array) -> tbptt.TrainState:
        draw, go_on = jax.random.split(key)
        example = jax.tree.map(
            lambda like: jax.ShapeDtypeStruct((chunk, lanes, *like[0]), like[1]),
            shapes,
            is_leaf=lambda like: isinstance(like, tuple) and len(like) == 2 and isinstance(like[0], tuple),
        )
        carry = model.cell.initial_carry((lanes,))
        return tbptt.init_state(estimator, optimizer, init_params(draw, model), carry, example, go_on)

    def make(lanes: int) -> tbptt.TrainState:
        key = jax.random.key(config.seed)
        if config.seeds == 1:
            return make_state(lanes, key)
        return tbptt.distributed.init_seeds(lambda key: make_state(lanes, key), jax.random.split(key, config.seeds))

    step: Any = tbptt.make_train_step(estimator, optimizer)
    step = step if config.seeds == 1 else tbptt.distributed.over_seeds(step)
    one = (lambda metrics: metrics) if config.seeds == 1 else _over_seeds
    if mesh is None:
        return Setup(model, stream, chunk, updates, make(config.lanes), step, jax.device_put, one)
    state = tbptt.distributed.init_sharded_state(make, config.lanes, mesh)
    step = tbptt.distributed.make_sharded_step(step, state)
    return Setup(model, stream, chunk, updates, state, step, lambda batch: tbptt.distributed.put_batch(batch, mesh), one)


def make_optimizer(lr: float, clip: float, updates: int | None) -> optax.GradientTransformation:
    """Clips by global norm, then Adam; an update that is not finite is skipped.

    The rate falls from lr to lr / 100 along half a cosine of the updates; where only time ends the run it stays as it is:
    it may depend on nothing but the update's number, or a resumed run would be another one.
    """
    rate = optax.constant_schedule(lr) if updates is None else optax.cosine_decay_schedule(lr, updates, alpha=0.01)
    return optax.chain(tbptt.optim.clip_by_global_norm(clip), tbptt.optim.skip_non_finite(optax.adam(rate)))


def params_of(state: tbptt.TrainState, seeds: int) -> list[Any]:
    """Returns the parameters of every seed, on the host: what is predicted with them is a matter of one device."""
    params = jax.device_get(state.params)
    return [params] if seeds == 1 else [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(seeds)]


def _loss(config: Any, data: RunData, model: Model) -> tbptt.LossFn:
    remat = None if config.memory is None else tbptt.MemoryBudget(config.memory << 20)
    loss = tbptt.squared_error
    if not isinstance(data.task, Forecast):
        loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.sequence_loss(model.cell, model.readout, loss, embedding=model.embedding, remat=remat)


@jax.jit
def _over_seeds(metrics: tbptt.Metrics) -> tbptt.Metrics:
    clipped = None if metrics.clipped is None else jnp.any(metrics.clipped)
    return tbptt.Metrics(metrics.loss.mean(), metrics.grad_norm.mean(), clipped, jnp.any(metrics.non_finite), None)
