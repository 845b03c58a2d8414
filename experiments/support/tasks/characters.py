"""Train, score and sample character models: LSTM layers with dropout around them."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.tasks.dropout_readout import DropoutDense
from tbptt.data import Alphabet

STEP_LOSS = optax.softmax_cross_entropy_with_integer_labels
SECTION = 16  # updates per call, between two reports of progress


class Embedded(nn.Module):
    """Embedding of a symbol, with dropout."""

    symbols: int
    size: int
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.rate, deterministic=False)(nn.Embed(self.symbols, self.size)(x))


class Model(NamedTuple):
    """A stack of LSTMs with flax modules around it; `rate` is the dropout rate in training."""

    cell: tbptt.Stack
    symbols: int
    rate: float
    unroll: tbptt.UnrollFn = tbptt.unroll

    def modules(self, rate: float) -> tuple[nn.Module, nn.Module]:
        """Make embedding and readout, whose parameters do not depend on the rate."""
        return Embedded(self.symbols, self.cell.input_dim, rate), DropoutDense(self.symbols, rate)


def make_model(
    symbols: int,
    layers: int,
    hidden: int,
    embedded: int,
    rate: float,
    unroll: tbptt.UnrollFn = tbptt.unroll,
) -> Model:
    """Stack `layers` LSTMs of `hidden` units on an embedding of size `embedded`."""
    sizes = [embedded] + [hidden] * layers
    cells = tuple(tbptt.LSTM(d, h) for d, h in zip(sizes[:-1], sizes[1:], strict=True))
    return Model(tbptt.Stack(cells), symbols, rate, unroll)


def train(
    model: Model,
    batch: tbptt.Batch,
    k: int,
    chunk: int,
    passes: float,
    lr: float,
    keys: jax.Array,
    report: Callable[[float, float], None],
) -> tuple[Any, np.ndarray]:
    """Train by TBPTT(k, k) with an update every `chunk` steps.

        for each pass: carry = initial carry; for each chunk: state = step(state, chunk with new
          dropout seeds)

    Args:
      batch: `[T, B]` symbols, one text segment per batch row; T is a multiple of SECTION * chunk.
      passes: number of passes over the batch, may be a fraction.
      lr: initial learning rate of Adam; falls along half a cosine to 0. Gradients are clipped to
        norm 1.
      keys: `[seeds]`, one run each, all trained at once.
      report: called as (completed fraction, bits per character) after every section.

    Returns:
      (params with a leading axis `[seeds]`, training bits per character `[sections, seeds]`).
    """
    embedding, readout = model.modules(model.rate)
    loss_fn = tbptt.losses.dropout_loss(
        model.cell, readout, STEP_LOSS, embedding=embedding, unroll=model.unroll
    )
    estimator = tbptt.truncated_bptt(loss_fn, k, k)
    sections = batch.inputs.shape[0] // (SECTION * chunk)
    total = max(1, round(passes * sections))
    schedule = optax.cosine_decay_schedule(lr, total * SECTION)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    carry, epoch = (
        model.cell.initial_carry(batch.inputs.shape[1:]),
        tbptt.make_train_epoch(estimator, optimizer, chunk),
    )

    def start(key: jax.Array) -> tbptt.TrainState:
        without_dropout = model.modules(0.0)
        params = tbptt.init_params(key, model.cell, without_dropout[1], without_dropout[0])
        return tbptt.init_state(
            estimator,
            optimizer,
            params,
            carry,
            tbptt.losses.with_seeds(key, section(batch, 0, chunk)),
        )

    @functools.partial(jax.jit, donate_argnums=0)
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def advance(
        state: tbptt.TrainState, key: jax.Array, part: tbptt.Batch
    ) -> tuple[tbptt.TrainState, jax.Array]:
        state, metrics = epoch(state, tbptt.losses.with_seeds(key, part))
        return state, jnp.mean(metrics.loss)

    @jax.jit
    @jax.vmap
    def reset_carry(state: tbptt.TrainState) -> tbptt.TrainState:
        return tbptt.rewind(estimator, state, carry, batch)

    state, bits = jax.jit(jax.vmap(start))(keys), []
    for i in range(total):
        if i and i % sections == 0:
            state = reset_carry(state)
        fresh = jax.vmap(functools.partial(jax.random.fold_in, data=i + 1))(keys)
        state, losses = advance(state, fresh, section(batch, i % sections, chunk))
        bits.append(np.asarray(losses) / math.log(2))
        if not np.isfinite(bits[-1]).all():
            raise FloatingPointError(
                f"the loss became non-finite in section {i} of {total}; lower the learning rate"
            )
        report((i + 1) / total, float(np.mean(bits[-1])))
    return state.params, np.asarray(bits)


def section(batch: tbptt.Batch, i: int, chunk: int) -> tbptt.Batch:
    """Return the i-th SECTION chunks of the batch."""
    return jax.tree.map(lambda leaf: leaf[i * SECTION * chunk : (i + 1) * SECTION * chunk], batch)


def bits_per_character(
    model: Model, params: Any, codes: np.ndarray, n: int = 48, before: int = 256
) -> list[float]:
    """Score every seed on a text, in which each character but the first is predicted once.

    The text is split into n segments that run side by side. Each starts `before` characters early,
    without a score, to warm up the carry.
    """
    N = len(codes) - 1
    T = -(-N // n)
    at = np.arange(n) * T + np.arange(-before, T)[:, None]
    real = (at >= 0) & (at < N)
    scored = (real & (np.arange(-before, T)[:, None] >= 0)).astype(np.float32)
    inside = np.clip(at, 0, N - 1)
    batch = tbptt.Batch(
        jnp.asarray(codes[inside]),
        jnp.asarray(codes[inside + 1]),
        jnp.asarray(scored),
        None,
        jnp.asarray(real),
    )
    embedding, readout = model.modules(0.0)
    loss_fn = tbptt.sequence_loss(
        model.cell, readout, STEP_LOSS, embedding=embedding, unroll=model.unroll
    )
    carry = model.cell.initial_carry((n,))
    sums = jax.jit(
        lambda params, batch: jax.lax.map(lambda p: loss_fn(p, carry, batch)[0], params)
    )(params, batch)
    return [float(total) / N / math.log(2) for total in np.asarray(sums, np.float64)]


def generate(
    model: Model, params: Any, alphabet: Alphabet, prompt: str, length: int, key: jax.Array
) -> str:
    """Continue a prompt by sampling each next character from the predicted distribution.

    Args:
      params: parameters of one seed.
      prompt: at least one character, all of the alphabet.

    Raises:
      ValueError: the prompt is empty or contains an unknown symbol.
    """
    if not prompt:
        raise ValueError("the prompt must have at least one character; got ''")
    start = jnp.asarray(alphabet.encode(prompt))[:, None]
    embedding, readout = model.modules(0.0)
    predict = functools.partial(tbptt.predict, model.cell, readout, embedding=embedding)

    @jax.jit
    def run(params: Any, start: jax.Array, key: jax.Array) -> jax.Array:
        carry, logits = predict(params, model.cell.initial_carry((1,)), tbptt.Batch(start, None))

        def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            carry, logits = state
            drawn = jax.random.categorical(key, logits)
            carry, logits = predict(params, carry, tbptt.Batch(drawn[None], None))
            return (carry, logits[-1]), drawn[0]

        return jax.lax.scan(step, (carry, logits[-1]), jax.random.split(key, length))[1]

    return alphabet.decode(np.asarray(run(params, start, key)))
