"""Build model, data stream, train step and initial state of a run from its settings and data."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import tbptt
from experiments.support.train.choices import ESTIMATORS
from experiments.support.train.data import RunData, training_stream
from experiments.support.train.linear import Linear
from experiments.support.train.model import Model, init_params, make_model
from experiments.support.train.task import Characters, Forecast
from tbptt.data import RecordingStream


class Setup(NamedTuple):
    """Model, data stream, train step and initial state of a run.

    model:   the model
    stream:  the training batches
    chunk:   number of time steps per update
    updates: total number of updates; None if training time is the limit
    state:   state before the first update, on its devices; leaves `[S, ...]` for several seeds
    step:    `(state, batch) -> (state, metrics)`
    put:     place a batch on the devices of the step
    reduce_metrics: reduce the metrics of several seeds to their means, and convert the loss of a
      text to bits, the unit of its error
    """

    model: Model
    stream: RecordingStream
    chunk: int
    updates: int | None
    state: tbptt.TrainState
    step: Callable[..., Any]
    put: Callable[[Any], Any]
    reduce_metrics: Callable[[tbptt.Metrics], tbptt.Metrics]


def build(
    config: Any,
    data: RunData,
    unroll: tbptt.UnrollFn = tbptt.unroll,
    linear: Linear | None = None,
) -> Setup:
    """Build the model and the train step of a run, whose cell `unroll` runs through time.

    Raises:
      ValueError: a flag does not fit the data, the model or the machine; the message names both.
    """
    model = make_model(
        data.task, config.cell, config.hidden, config.layers, unroll, linear, config.longest_lag
    )
    mesh = None
    if config.devices > 1 or jax.process_count() > 1:
        mesh = tbptt.distributed.batch_mesh(config.devices)
    loss_fn = _loss(config, data, model)
    if mesh is not None:
        loss_fn = tbptt.distributed.sharded_loss(loss_fn, model.cell.initial_carry, mesh)
    choice = ESTIMATORS[config.estimator]
    estimator = tbptt.optim.reset_on_non_finite(choice.make(loss_fn, config))
    optimizer = tbptt.optim.adam_with_decay(config.lr, config.clip)
    chunk = choice.chunk(config)
    rows = None if mesh is None else tbptt.distributed.local_rows(config.batch, mesh)
    stream = training_stream(data, config.batch, chunk, rows, linear)
    updates = None if config.epochs is None else max(1, math.ceil(config.epochs * len(stream)))
    first = stream.chunk(0).batch

    def state_of_seed(rows: int, key: jax.Array) -> tbptt.TrainState:
        params_key, state_key = jax.random.split(key)
        params, carry = init_params(params_key, model), model.cell.initial_carry((rows,))
        example = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((chunk, rows, *a.shape[2:]), a.dtype), first
        )
        return tbptt.init_state(estimator, optimizer, params, carry, example, state_key)

    def initial_state(rows: int) -> tbptt.TrainState:
        key = jax.random.key(config.seed)
        if config.seeds == 1:
            return state_of_seed(rows, key)
        return tbptt.distributed.init_seeds(
            lambda key: state_of_seed(rows, key), jax.random.split(key, config.seeds)
        )

    step: Any = tbptt.make_train_step(estimator, optimizer)
    step = step if config.seeds == 1 else tbptt.distributed.over_seeds(step)
    if mesh is None:
        state, put = initial_state(config.batch), jax.device_put
    else:
        state = tbptt.distributed.init_sharded_state(initial_state, config.batch, mesh)
        step = tbptt.distributed.make_sharded_step(step, state)
        put = functools.partial(tbptt.distributed.put_batch, mesh=mesh)
    reduce_metrics = (lambda metrics: metrics) if config.seeds == 1 else _mean_over_seeds
    if isinstance(data.task, Characters):
        reduce_metrics = _in_bits(reduce_metrics)
    return Setup(model, stream, chunk, updates, state, step, put, reduce_metrics)


def params_of(state: tbptt.TrainState, seeds: int) -> list[Any]:
    """Return the parameters of every seed, on the host: prediction runs on one device."""
    params = jax.device_get(state.params)
    if seeds == 1:
        return [params]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(seeds)]


def _loss(config: Any, data: RunData, model: Model) -> tbptt.LossFn:
    remat = None if config.memory is None else tbptt.MemoryBudget(config.memory << 20)
    loss = _squared_error_of_known if config.missing == "mask" else tbptt.squared_error
    if not isinstance(data.task, Forecast):
        loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.sequence_loss(
        model.cell, model.readout, loss, embedding=model.embedding, remat=remat, unroll=model.unroll
    )


def _squared_error_of_known(outputs: Any, targets: Any) -> jax.Array:
    """Compute the mean squared error over the targets of a step that are not NaN."""
    known = ~jnp.isnan(targets)
    errors = jnp.where(known, outputs - targets, 0)
    return jnp.sum(errors**2, axis=-1) / jnp.maximum(jnp.sum(known, axis=-1), 1)


def _in_bits(
    reduce_metrics: Callable[[tbptt.Metrics], tbptt.Metrics],
) -> Callable[[tbptt.Metrics], tbptt.Metrics]:
    def in_bits(metrics: tbptt.Metrics) -> tbptt.Metrics:
        metrics = reduce_metrics(metrics)
        return metrics._replace(loss=metrics.loss / math.log(2))

    return jax.jit(in_bits)


@jax.jit
def _mean_over_seeds(metrics: tbptt.Metrics) -> tbptt.Metrics:
    clipped = None if metrics.clipped is None else jnp.any(metrics.clipped)
    return tbptt.Metrics(
        metrics.loss.mean(), metrics.grad_norm.mean(), clipped, jnp.any(metrics.non_finite), None
    )
