"""Train several seeds in one compiled program, with all their updates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import tbptt
from tbptt import Batch, Estimator


class Model(NamedTuple):
    """A cell, its readout, the loss of a step, the batch size B, and the unroll function."""

    cell: Any
    readout: nn.Module
    loss: Any
    batch_size: int
    unroll: tbptt.UnrollFn = tbptt.unroll

    @property
    def loss_fn(self) -> tbptt.LossFn:
        """The loss of a sequence."""
        return tbptt.sequence_loss(self.cell, self.readout, self.loss, unroll=self.unroll)


def train(
    model: Model,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    draw: Callable[[jax.Array], Batch],
    keys: jax.Array,
    updates: int,
) -> tuple[Any, np.ndarray]:
    """Train on independent sequences, for all keys of `keys` at once.

        params = init_params(...)
        for update in range(updates):
            batch = draw(a new key)                            # whole sequences, [T, B, ...]
            params, losses[update] = step(params, initial carry, batch)

    Args:
      draw: `key -> Batch`, one batch of `model.batch_size` sequences.
      keys: `[seeds]` typed keys, from which the parameters and data of each seed are drawn.

    Returns:
      (params with a leading axis `[seeds]`, losses `[seeds, updates]` before each update).
    """
    step = tbptt.make_train_step(estimator, optimizer)
    carry = model.cell.initial_carry((model.batch_size,))

    def one(key: jax.Array) -> tuple[Any, jax.Array]:
        key_params, key_data = jax.random.split(key)
        params = tbptt.init_params(key_params, model.cell, model.readout)
        state = tbptt.init_state(
            estimator, optimizer, params, carry, jax.eval_shape(draw, key_data)
        )

        def update(state: tbptt.TrainState, key: jax.Array) -> tuple[tbptt.TrainState, jax.Array]:
            batch = draw(key)
            state, metrics = step(tbptt.rewind(estimator, state, carry, batch), batch)
            return state, metrics.loss

        state, losses = jax.lax.scan(update, state, jax.random.split(key_data, updates))
        return state.params, losses

    params, losses = _over_seeds(one)(keys)
    return params, np.asarray(losses)


def train_stream(
    model: Model,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    draw: Callable[[jax.Array], Batch],
    keys: jax.Array,
    chunk: int,
) -> tuple[Any, np.ndarray]:
    """Train on one unbroken stream with an update every `chunk` steps.

    Args: as for `train`, but `draw(key)` is the whole stream `[T, B, ...]`; `chunk` is the number
      of steps between updates, a divisor of T.

    Returns:
      (params with a leading axis `[seeds]`, losses `[seeds, T // chunk]`).
    """
    epoch = tbptt.make_train_epoch(estimator, optimizer, chunk)

    def one(key: jax.Array) -> tuple[Any, jax.Array]:
        key_params, key_data = jax.random.split(key)
        batch, params = draw(key_data), tbptt.init_params(key_params, model.cell, model.readout)
        example = jax.eval_shape(lambda b: jax.tree.map(lambda a: a[:chunk], b), batch)
        carry = model.cell.initial_carry((model.batch_size,))
        state, metrics = epoch(
            tbptt.init_state(estimator, optimizer, params, carry, example), batch
        )
        return state.params, metrics.loss

    params, losses = _over_seeds(one)(keys)
    return params, np.asarray(losses)


def test(
    model: Model,
    score: Callable[[Any, Any], Any],
    draw: Callable[[jax.Array], Batch],
    params: Any,
    keys: jax.Array,
) -> np.ndarray:
    """Return `score(outputs, batch)` of every seed on its own batch, outputs `[T, B, ...]`."""

    def one(seed: tuple[Any, jax.Array]) -> Any:
        params, key = seed
        batch = draw(key)
        carry = model.cell.initial_carry(batch.inputs.shape[1:-1])
        _, outputs = tbptt.predict(
            model.cell, model.readout, params, carry, batch, unroll=model.unroll
        )
        return score(outputs, batch)

    return np.asarray(_over_seeds(one)((params, keys)))


def _over_seeds(one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.jit(lambda seeds: tbptt.distributed.map_seeds(one, seeds))


def keys_of(seed: int, seeds: int) -> tuple[jax.Array, jax.Array]:
    """Make the keys of training and the keys of the tests, `[seeds]` each."""
    train_key, test_key = jax.random.split(jax.random.key(seed))
    return jax.random.split(train_key, seeds), jax.random.split(test_key, seeds)


def thinned(losses: np.ndarray, points: int = 60) -> dict[str, list[Any]]:
    """Average curves `[seeds, updates]` over intervals of equal length, for a figure.

    Returns:
      updates: the update at the end of each interval; losses: the means of every seed, None where
        not finite.
    """
    length = max(losses.shape[1] // points, 1)
    intervals = losses[:, : losses.shape[1] // length * length].reshape(losses.shape[0], -1, length)
    means = intervals.mean(-1)
    finite = np.where(np.isfinite(means), means, np.nan)
    curves = [[None if np.isnan(v) else float(f"{v:.4g}") for v in row] for row in finite]
    return {"updates": (np.arange(1, means.shape[1] + 1) * length).tolist(), "losses": curves}
