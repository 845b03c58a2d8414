"""Training of several seeds at once: every seed is a lane of one `vmap`, and all updates are one compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

import tbptt
from tbptt import Batch, Estimator


class Model(NamedTuple):
    """A cell with its readout, and the lanes of a batch (B)."""

    cell: Any
    readout: nn.Module
    lanes: int


def train(
    model: Model,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    draw: Callable[[jax.Array], Batch],
    keys: jax.Array,
    updates: int,
) -> tuple[Any, jax.Array]:
    """Trains on sequences that each begin afresh; for every key of `keys`, side by side:

        params = init_params(...)
        for update in range(updates):
            batch = draw(a new key)                                    # whole sequences, [T, B, ...]
            params, losses[update] = step(params, initial carry, batch)

    Args:
      draw: `key -> Batch`, one batch of `model.lanes` sequences.
      keys: `[seeds]` typed keys; a seed's parameters and data come from its own.

    Returns:
      (params with a leading axis `[seeds]`, losses `[seeds, updates]` before each update).
    """
    step = tbptt.make_train_step(estimator, optimizer)
    carry = model.cell.initial_carry((model.lanes,))

    def one(key: jax.Array) -> tuple[Any, jax.Array]:
        key_params, key_data = jax.random.split(key)
        params = tbptt.init_params(key_params, model.cell, model.readout)
        example = jax.eval_shape(draw, key_data)
        state = tbptt.init_state(estimator, optimizer, params, carry, example)

        def update(state: tbptt.TrainState, key: jax.Array) -> tuple[tbptt.TrainState, jax.Array]:
            batch = draw(key)
            state, metrics = step(tbptt.rewind(estimator, state, carry, batch), batch)
            return state, metrics.loss

        state, losses = jax.lax.scan(update, state, jax.random.split(key_data, updates))
        return state.params, losses

    return jax.jit(jax.vmap(one))(keys)


def test(
    model: Model, score: Callable[[Any, Any], jax.Array], draw: Callable[[jax.Array], Batch], params: Any, keys: jax.Array
) -> jax.Array:
    """Scores every seed on sequences of its own key: `score(outputs, batch)` with outputs `[T, B, ...]`; `[seeds, ...]`."""

    def one(params: Any, key: jax.Array) -> jax.Array:
        batch = draw(key)
        carry = model.cell.initial_carry(batch.inputs.shape[1:-1])
        _, outputs = tbptt.predict(model.cell, model.readout, params, carry, batch)
        return score(outputs, batch)

    return jax.jit(jax.vmap(one))(params, keys)
