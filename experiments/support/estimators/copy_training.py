"""Define the model, the streams and the training of `experiments.adaptive_copy`."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.estimators.published_copy import published_stream
from tbptt.data import copy_stream
from tbptt.types import PRNGKey

LAG, PASS = 10, 480
# Steps and batch rows of the published test streams; the fraction of repeats depends on both.
TEST, ROWS = 1000, 64
# Perplexity of a memoryless model that knows the position.
MEMORYLESS = 4 ** ((LAG - 1) / (2 * LAG))
TEST_EVERY = 4  # passes between two tests


class Task:
    """The model, and the data of each seed."""

    def __init__(self, hidden: int, batch: int, unroll: tbptt.UnrollFn = tbptt.unroll):
        self.batch = batch
        self.cell = tbptt.Stack((tbptt.LSTM(6, hidden), tbptt.LSTM(hidden, hidden)))
        self.readout = nn.Dense(6)
        loss = optax.softmax_cross_entropy_with_integer_labels
        self.loss_fn = tbptt.sequence_loss(self.cell, self.readout, loss, unroll=unroll)
        self.perplexity = jax.jit(self._perplexity)

    def data(self, seed: int) -> tuple[tbptt.Batch, tuple[tbptt.Batch, float], tbptt.Batch]:
        """Draw (training stream, (test stream, memoryless perplexity), clean test stream)."""
        keys = jax.random.split(jax.random.key(1000 + seed), 3)
        drawn = max(self.batch, ROWS)
        train, _ = published_stream(keys[0], 8 * PASS, drawn, LAG)
        # Later rows have fewer repeats, so take evenly spaced ones.
        spread = np.arange(self.batch) * drawn // self.batch
        train = jax.tree.map(lambda a: a[:, spread], train)
        return (
            train,
            published_stream(keys[1], TEST, ROWS, LAG),
            copy_stream(keys[2], TEST, ROWS, LAG),
        )

    def init(self, seed: int) -> tbptt.SequenceParams:
        """Draw matrices as published: U(-r, r), r = sqrt(3 / longest side); forget biases are 1.

        The published biases are all 0. With them every run learns, too, but only after about 1,000
        updates, and a tolerance that may choose windows of 10 and 15 steps stays with these and
        does not leave the plateau.
        """
        params, key = (
            tbptt.init_params(jax.random.key(seed), self.cell, self.readout),
            jax.random.key(2000 + seed),
        )
        leaves, tree = jax.tree.flatten(params)

        def draw(key: PRNGKey, a: jax.Array) -> jax.Array:
            r = math.sqrt(3 / max(a.shape))
            # Biases stay as initialised.
            return jax.random.uniform(key, a.shape, a.dtype, -r, r) if a.ndim > 1 else a

        return tree.unflatten(
            [draw(k, a) for k, a in zip(jax.random.split(key, len(leaves)), leaves, strict=True)]
        )

    def _perplexity(self, params: Any, test: tbptt.Batch) -> jax.Array:
        loss_sum, _ = self.loss_fn(params, self.cell.initial_carry(test.targets.shape[1:]), test)
        return jnp.exp(loss_sum / test.targets.size)


def make_trainer(task: Task, estimator: tbptt.Estimator, k1: int, count: int, clip: float):
    """Make the function `(seed, training stream, test streams) -> (perplexities, infos)`.

    It runs SGD with learning rate sqrt(k1) and weight decay 1e-5, as published. There are
    perplexities `[tests, streams]` of every TEST_EVERY passes, and infos of every pass.
    `callback(passes, params)` is called before the first pass and after the passes 1, 2, 4, 8, ...
    and the last one.
    """
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-5), optax.clip_by_global_norm(clip), optax.sgd(math.sqrt(k1))
    )
    epoch = tbptt.make_train_epoch(estimator, optimizer, k1)

    def train(
        seed: int,
        stream: tbptt.Batch,
        tests: tuple[tbptt.Batch, ...],
        callback: Callable[[int, Any], None] | None = None,
    ) -> tuple[np.ndarray, list[Any]]:
        carry = task.cell.initial_carry(stream.targets.shape[1:])
        params = task.init(seed)
        segments = [
            jax.tree.map(lambda a, i=i: a[i * PASS : (i + 1) * PASS], stream) for i in range(8)
        ]
        example = jax.tree.map(lambda a: a[:k1], segments[0])
        state = tbptt.init_state(estimator, optimizer, params, carry, example)
        perplexities, infos = [], []
        if callback:
            callback(0, state.params)
        for index in range(count):
            state, metrics = epoch(state, segments[index % len(segments)])
            if (index + 1) % TEST_EVERY == 0:
                perplexities.append([float(task.perplexity(state.params, test)) for test in tests])
            infos.append(jax.tree.map(np.asarray, metrics.info))
            if callback and ((index + 1).bit_count() == 1 or index + 1 == count):  # a power of two
                callback(index + 1, state.params)
        return np.asarray(perplexities), infos

    return train
