"""Train a network to forecast a recording, with any estimator, and score it on held-out steps."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from tbptt.data import Recording, forecast_pairs, split_into_streams, standardise


class Job(NamedTuple):
    """A recording split for training and scoring. Steps are samples.

    values: `[T, 1]`, standardised by the mean and scale of the training part
    batch: the training part as B contiguous segments of equal length, `[T_train / B, B, 1]`
    horizon: the number of steps ahead that is scored; it is the last of the horizons in
    batch.targets
    valid, test: (start, end) of the two scored parts; an origin t counts if t and t + horizon lie
    in the part
    """

    values: np.ndarray
    batch: tbptt.Batch
    horizon: int
    valid: tuple[int, int]
    test: tuple[int, int]


class Model(NamedTuple):
    """A cell, its linear readout, and the unroll function."""

    cell: Any
    readout: nn.Module
    unroll: tbptt.UnrollFn = tbptt.unroll

    def loss_fn(self, remat: Any = None) -> tbptt.LossFn:
        """Make the squared error of a sequence."""
        return tbptt.sequence_loss(
            self.cell, self.readout, tbptt.squared_error, remat=remat, unroll=self.unroll
        )


class Run(NamedTuple):
    """Result of a run; windows: the mean k2 of every epoch if the estimator chooses k2."""

    params: Any
    updates: int
    epochs: int
    train_seconds: float
    compile_seconds: float
    clipped_share: float
    windows: list[float]


def make_job(
    recording: Recording, horizons: tuple[int, ...], n_rows: int, train_end: int, test_start: int
) -> Job:
    """Standardise column 0 and split its training part into `n_rows` batch rows.

    Only the last horizon is scored.
    """
    horizon = horizons[-1]
    scaled, _ = standardise(recording.values[:, :1], train_end)
    inputs, targets = forecast_pairs(scaled, 0, horizons)
    # The last targets of the training part lie in the validation part: those steps have weight 0.
    weights = np.ones((train_end,), np.float32)
    weights[train_end - horizon :] = 0
    parts = (inputs[:train_end].astype(np.float32), targets[:train_end].astype(np.float32), weights)
    batch = tbptt.Batch(*(jnp.asarray(part) for part in split_into_streams(parts, n_rows)))
    return Job(scaled, batch, horizon, (train_end, test_start), (test_start, len(scaled)))


@functools.cache
def estimator_of(model: Model, k1: int, k2: int) -> tbptt.Estimator:
    """Return TBPTT(k1, k2) of the squared error; cached, so that runs share compiled programs."""
    return tbptt.truncated_bptt(model.loss_fn(), k1, k2)


@functools.cache
def full_bptt_of(model: Model) -> tbptt.Estimator:
    """Return full BPTT of the squared error; cached, as `estimator_of`."""
    return tbptt.full_bptt(model.loss_fn())


def make_optimizer(clip: float) -> optax.GradientTransformation:
    """Make clipping by global norm and Adam, whose rate the loop sets between epochs."""
    return optax.chain(
        tbptt.optim.with_clip_stats(optax.clip_by_global_norm(clip)),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.0),
    )


def train(
    estimator: tbptt.Estimator,
    model: Model,
    job: Job,
    chunk: int,
    *,
    lr: float,
    clip: float,
    seconds: float | None = None,
    epochs: int | None = None,
    seed: int,
    report: Callable[[float, float], None] = lambda used, loss: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Train until `seconds` by `clock` are used, or for a number of epochs.

    The learning rate falls from lr to 0 along half a cosine of the seconds used, or of the epochs,
    so the rate of every run ends at 0 whatever its speed. `report(seconds_used, loss)` is called
    after every epoch.
    """
    if (seconds is None) == (epochs is None):
        raise ValueError(
            f"exactly one of seconds and epochs must be given; got seconds={seconds}, "
            f"epochs={epochs}"
        )
    optimizer = make_optimizer(clip)
    carry = model.cell.initial_carry(job.batch.inputs.shape[1:2])
    params = tbptt.init_params(jax.random.key(seed), model.cell, model.readout)
    state = tbptt.init_state(estimator, optimizer, params, carry, job.batch)
    begin = time.perf_counter()
    leaves, tree = jax.tree.flatten((state, job.batch))
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    epoch = _compiled_epoch(estimator, clip, chunk, tree, shapes)
    compile_seconds = time.perf_counter() - begin
    used, done, clipped, windows = 0.0, 0, [], []
    while (share := used / seconds if seconds is not None else done / (epochs or 1)) < 1:
        rate = lr * 0.5 * (1 + math.cos(math.pi * share))
        state.opt_state[1].hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        state = jax.block_until_ready(tbptt.rewind(estimator, state, carry, job.batch))
        begin = clock()
        state, metrics = jax.block_until_ready(epoch(state, job.batch))
        used += clock() - begin
        done += 1
        clipped.append(float(metrics.clipped.mean()))
        if hasattr(metrics.info, "k2"):
            windows.append(float(metrics.info.k2.mean()))
        report(used, float(metrics.loss.mean()))
        if bool(metrics.non_finite.any()):
            raise FloatingPointError(
                f"loss or gradient became non-finite in epoch {done}; lower --lr or --clip"
            )
    return Run(
        state.params, int(state.step), done, used, compile_seconds, float(np.mean(clipped)), windows
    )


@functools.cache
def _compiled_epoch(
    estimator: tbptt.Estimator, clip: float, chunk: int, tree: Any, shapes: tuple[Any, ...]
) -> Any:
    """Compile an epoch for an estimator and shapes of (state, batch).

    Runs that differ in data or seed share it.
    """
    jitted: Any = tbptt.make_train_epoch(estimator, make_optimizer(clip), chunk)
    return jitted.lower(*jax.tree.unflatten(tree, shapes)).compile()


def step_temp_bytes(estimator: tbptt.Estimator, model: Model, job: Job, chunk: int) -> int:
    """Return the temporary bytes of one compiled train step on a chunk, as XLA plans them."""
    example = jax.tree.map(lambda leaf: leaf[:chunk], job.batch)
    return temp_bytes(tbptt.make_train_step, estimator, model, example)


def temp_bytes(make: Any, estimator: tbptt.Estimator, model: Model, batch: tbptt.Batch) -> int:
    """Return the temporary bytes of `make(estimator, optimizer)`, compiled for a batch."""
    optimizer = make_optimizer(1.0)
    carry = model.cell.initial_carry(batch.inputs.shape[1:2])
    params = tbptt.init_params(jax.random.key(0), model.cell, model.readout)
    state = tbptt.init_state(estimator, optimizer, params, carry, batch)
    return (
        make(estimator, optimizer)
        .lower(state, batch)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


WARM_UP = 2000  # steps before a scored part, from the initial carry


def forecast(model: Model, params: Any, job: Job, part: tuple[int, int]) -> np.ndarray:
    """Return the forecasts `[end - start - horizon]` of the last horizon at the origins of a part.

    The carry is warmed up by the steps before the part.
    """
    start, end = part
    skip = min(start, WARM_UP)
    inputs = jnp.asarray(job.values[start - skip : end - job.horizon, None, :1], jnp.float32)
    carry = model.cell.initial_carry((1,))
    outputs = _predicted(model)(params, carry, tbptt.Batch(inputs, None))
    return np.asarray(outputs, np.float64)[skip:, 0, -1]


@functools.cache
def _predicted(model: Model) -> Any:
    def run(params: Any, carry: Any, batch: tbptt.Batch) -> jax.Array:
        _, outputs = tbptt.predict(
            model.cell, model.readout, params, carry, batch, unroll=model.unroll
        )
        return outputs

    return jax.jit(run)


def mse(job: Job, forecasts: np.ndarray, part: tuple[int, int]) -> float:
    """Return the mean squared error of the forecasts of a part."""
    start, end = part
    return float(np.mean((forecasts - job.values[start + job.horizon : end, 0]) ** 2))


def errors(model: Model, params: Any, job: Job) -> tuple[float, float]:
    """Return the mean squared errors on the validation and the test part."""
    valid, test = (
        mse(job, forecast(model, params, job, part), part) for part in (job.valid, job.test)
    )
    return valid, test
