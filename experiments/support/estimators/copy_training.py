"""A model on the copy task of `experiments.adaptive_copy`: its streams, its training, its tests."""

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
TEST, LANES = 1000, 64  # steps and lanes of published test streams: how much of a stream is repeats depends on both
NOTHING = 4 ** ((LAG - 1) / (2 * LAG))  # the perplexity of a network that knows the position and remembers nothing
LOOK = 4  # passes between two tests


class Task:
    """The model, and a seed's data."""

    def __init__(self, hidden: int, lanes: int):
        self.lanes = lanes
        self.cell = tbptt.Stack((tbptt.LSTM(6, hidden), tbptt.LSTM(hidden, hidden)))
        self.readout = nn.Dense(6)
        self.loss_fn = tbptt.sequence_loss(self.cell, self.readout, optax.softmax_cross_entropy_with_integer_labels)
        self.perplexity = jax.jit(self._perplexity)

    def data(self, seed: int) -> tuple[tbptt.Batch, tuple[tbptt.Batch, float], tbptt.Batch]:
        """Draws (a stream to train on, (a test stream, who remembers nothing has on it), a test stream without repeats)."""
        keys = jax.random.split(jax.random.key(1000 + seed), 3)
        drawn = max(self.lanes, LANES)
        train, _ = published_stream(keys[0], 8 * PASS, drawn, LAG)
        spread = np.arange(self.lanes) * drawn // self.lanes  # a later lane has fewer repeats: some of all
        train = jax.tree.map(lambda a: a[:, spread], train)
        return train, published_stream(keys[1], TEST, LANES, LAG), copy_stream(keys[2], TEST, LANES, LAG)

    def init(self, seed: int) -> tbptt.SequenceParams:
        """Draws matrices as published: U(-r, r), r = sqrt(3 / longest side); biases are 0, those of forget gates 1.

        Published were biases of 0: so all learn too, but begin after some 1,000 updates (K = 15: 1.15 after 4,000), and a
        tolerance that may choose windows of 10 and 15 steps is content with them, and does not leave the plateau.
        """
        params, key = tbptt.init_params(jax.random.key(seed), self.cell, self.readout), jax.random.key(2000 + seed)
        leaves, tree = jax.tree.flatten(params)

        def draw(key: PRNGKey, a: jax.Array) -> jax.Array:
            r = math.sqrt(3 / max(a.shape))
            return jax.random.uniform(key, a.shape, a.dtype, -r, r) if a.ndim > 1 else a  # our biases are as wanted

        return tree.unflatten([draw(k, a) for k, a in zip(jax.random.split(key, len(leaves)), leaves, strict=True)])

    def _perplexity(self, params: Any, test: tbptt.Batch) -> jax.Array:
        loss_sum, _ = self.loss_fn(params, self.cell.initial_carry(test.targets.shape[1:]), test)
        return jnp.exp(loss_sum / test.targets.size)


def make_trainer(task: Task, estimator: tbptt.Estimator, k1: int, count: int, clip: float):
    """Makes `(seed, training stream, test streams) -> (perplexities, infos)`, compiled once for all seeds.

    SGD with rate sqrt(k1) and weight decay 1e-5, as published. Perplexities `[tests, streams]` come every LOOK passes,
    infos every pass. `look(passes, params)` is called before the first pass and after passes 1, 2, 4, 8, ... and the last.
    """
    optimizer = optax.chain(optax.add_decayed_weights(1e-5), optax.clip_by_global_norm(clip), optax.sgd(math.sqrt(k1)))
    epoch = tbptt.make_train_epoch(estimator, optimizer, k1)

    def train(
        seed: int,
        stream: tbptt.Batch,
        tests: tuple[tbptt.Batch, ...],
        look: Callable[[int, Any], None] | None = None,
    ) -> tuple[np.ndarray, list[Any]]:
        carry = task.cell.initial_carry(stream.targets.shape[1:])
        params = task.init(seed)
        pieces = [jax.tree.map(lambda a, i=i: a[i * PASS : (i + 1) * PASS], stream) for i in range(8)]
        example = jax.tree.map(lambda a: a[:k1], pieces[0])
        state = tbptt.init_state(estimator, optimizer, params, carry, example)
        seen, infos = [], []
        if look:
            look(0, state.params)
        for index in range(count):
            state, metrics = epoch(state, pieces[index % len(pieces)])
            if (index + 1) % LOOK == 0:
                seen.append([float(task.perplexity(state.params, test)) for test in tests])
            infos.append(jax.tree.map(np.asarray, metrics.info))
            if look and ((index + 1).bit_count() == 1 or index + 1 == count):  # a power of two
                look(index + 1, state.params)
        return np.asarray(seen), infos

    return train
