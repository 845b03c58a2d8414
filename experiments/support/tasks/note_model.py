"""Train, score and sample an LSTM on piano rolls that are packed into batch rows."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.tasks.dropout_readout import DropoutDense
from experiments.support.tasks.note_baselines import previous
from tbptt.data import pack

ROWS = 16  # batch rows


class Trained(NamedTuple):
    """params: those of the best pass by validation, `[seeds, ...]`; nlls: `[passes, seeds]`."""

    params: Any
    train_nll: np.ndarray
    valid_nll: np.ndarray


def step_nll(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the negative log-likelihood of a step in nats, summed over P independent notes."""
    return jnp.sum(optax.sigmoid_binary_cross_entropy(outputs, targets), axis=-1)


def packed(
    rolls: Sequence[np.ndarray], multiple: int = 1, order: Sequence[int] | None = None
) -> tbptt.Batch:
    """Pack pieces into ROWS batch rows: inputs are the previous notes, targets the notes.

    The rows are long enough for any order of the pieces, and rounded up to a multiple of
    `multiple`.
    """
    order = range(len(rolls)) if order is None else order
    T = sum(len(roll) for roll in rolls) // ROWS + max(len(roll) for roll in rolls)
    pieces = [rolls[i].astype(np.float32) for i in order]
    inputs = [previous(piece) for piece in pieces]
    return pack(inputs, pieces, ROWS, -(-T // multiple) * multiple)


def train(
    cell: tbptt.LSTM,
    rate: float,
    train_rolls: Sequence[np.ndarray],
    valid_rolls: Sequence[np.ndarray],
    k: int,
    chunk: int,
    passes: int,
    lr: float,
    keys: jax.Array,
    report: Callable[[int, float, float], None],
    unroll: tbptt.UnrollFn = tbptt.unroll,
) -> Trained:
    """Train by TBPTT(k, k) with an update every `chunk` steps, in a new order each pass.

    Args:
      keys: `[seeds]`, one run each; the order of the pieces is the same for all.
      report: called as (number of passes, training nll, validation nll) after each pass.
      unroll: the function that runs the cell through time.
    """
    loss_fn = tbptt.losses.dropout_loss(
        cell, DropoutDense(cell.input_dim, rate), step_nll, unroll=unroll
    )
    estimator = tbptt.truncated_bptt(loss_fn, k, k)
    example = packed(train_rolls, chunk)
    updates = passes * (example.inputs.shape[0] // chunk)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, updates))
    )
    carry, epoch = cell.initial_carry((ROWS,)), tbptt.make_train_epoch(estimator, optimizer, chunk)

    def start(key: jax.Array) -> tbptt.TrainState:
        params = tbptt.init_params(key, cell, DropoutDense(cell.input_dim))
        return tbptt.init_state(
            estimator, optimizer, params, carry, tbptt.losses.with_seeds(key, example)
        )

    @functools.partial(jax.jit, donate_argnums=0)
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def one_pass(
        state: tbptt.TrainState, key: jax.Array, batch: tbptt.Batch
    ) -> tuple[tbptt.TrainState, jax.Array]:
        batch = tbptt.losses.with_seeds(key, batch)
        assert batch.mask is not None  # `pack` makes one
        state, metrics = epoch(tbptt.rewind(estimator, state, carry, batch), batch)
        # The last chunks have more padding.
        steps = jnp.sum(batch.mask.reshape(len(metrics.loss), -1), axis=1)
        return state, jnp.sum(metrics.loss * steps) / jnp.sum(steps)

    state = jax.jit(jax.vmap(start))(keys)
    score, validation = scorer(cell), packed(valid_rolls)
    best, best_nll, curves = jax.tree.map(jnp.copy, state.params), jnp.full(len(keys), jnp.inf), []
    shuffle = np.random.default_rng(np.asarray(jax.random.key_data(keys[0])))
    for done in range(1, passes + 1):
        batch = packed(train_rolls, chunk, shuffle.permutation(len(train_rolls)).tolist())
        fresh = jax.vmap(functools.partial(jax.random.fold_in, data=done))(keys)
        state, loss = one_pass(state, fresh, batch)
        nll = score(state.params, validation)
        best, best_nll = better(best, best_nll, state.params, nll)
        curves.append((np.asarray(loss), np.asarray(nll)))
        if not np.isfinite(curves[-1]).all():
            raise FloatingPointError(
                f"the loss became non-finite in pass {done} of {passes}; lower --lr"
            )
        report(done, float(loss.mean()), float(nll.mean()))
    return Trained(best, *(np.asarray(curve) for curve in zip(*curves, strict=True)))


@jax.jit
def better(a: Any, a_nll: jax.Array, b: Any, b_nll: jax.Array) -> tuple[Any, jax.Array]:
    """Return the parameters with the lower nll of each seed; those of a if both are equal."""
    pick = jax.vmap(jnp.where)
    return jax.tree.map(lambda old, new: pick(b_nll < a_nll, new, old), a, b), jnp.minimum(
        a_nll, b_nll
    )


def scorer(cell: tbptt.LSTM) -> Callable[[Any, tbptt.Batch], jax.Array]:
    """Make the function `(params [seeds], packed pieces) -> nll [seeds]`, in nats per step."""
    loss_fn = tbptt.sequence_loss(cell, DropoutDense(cell.input_dim), step_nll)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def score(params: Any, batch: tbptt.Batch) -> jax.Array:
        assert batch.mask is not None
        return loss_fn(params, cell.initial_carry((ROWS,)), batch)[0] / jnp.sum(batch.mask)

    return score


def generate(cell: tbptt.LSTM, params: Any, T: int, key: jax.Array) -> np.ndarray:
    """Sample a piece of T steps that starts from silence, every note by its own probability.

    `[T, P]` booleans.
    """

    @jax.jit
    def run(params: Any, key: jax.Array) -> jax.Array:
        def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            carry, notes = state
            batch = tbptt.Batch(notes[None, None], None)
            carry, logits = tbptt.predict(cell, DropoutDense(cell.input_dim), params, carry, batch)
            drawn = jax.random.bernoulli(key, jax.nn.sigmoid(logits[0, 0]))
            return (carry, drawn.astype(notes.dtype)), drawn

        start = (cell.initial_carry((1,)), jnp.zeros(cell.input_dim))
        return jax.lax.scan(step, start, jax.random.split(key, T))[1]

    return np.asarray(run(params, key))
