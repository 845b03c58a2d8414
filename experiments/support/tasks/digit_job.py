"""Classify digits as sequences: tasks, loss at the last step, training runs, and accuracy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.common.equal_time import Runner
from tbptt.data import Digits

CLASSES, PERMUTATION_SEED, TEST_PART = 10, 92916, 250


class Task(NamedTuple):
    """Sequences `[T, N, D]` of grey values 0 .. 255 with labels `[N]`, for training and test."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Net(NamedTuple):
    """A cell, its unroll function, and its readout."""

    name: str
    cell: Any
    unroll: tbptt.UnrollFn = tbptt.unroll
    readout: nn.Module = nn.Dense(CLASSES)


def make_task(name: str, train: Digits, test: Digits) -> Task:
    """Make sequences of images: "rows" (T = 28), "pixels" or "permuted" pixels (T = 784)."""

    def sequences(digits: Digits) -> tuple[np.ndarray, np.ndarray]:
        if name == "rows":
            return digits.images.transpose(1, 0, 2), digits.labels
        pixels = digits.images.reshape(len(digits.images), -1)
        if name == "permuted":
            pixels = pixels[:, np.random.default_rng(PERMUTATION_SEED).permutation(pixels.shape[1])]
        elif name != "pixels":
            raise ValueError(f"task must be rows, pixels or permuted; got {name!r}")
        return np.ascontiguousarray(pixels.T[:, :, None]), digits.labels

    return Task(name, sequences(train), sequences(test))


def last_step_loss(net: Net) -> tbptt.LossFn:
    """Make the loss of a label after the last step, the only step at which the readout runs.

        loss_sum = sum over the batch of w_{T-1} cross_entropy(readout(y_{T-1}), label)

    It is additive over time if the weights of all other steps are 0, as in `labelled`.
    """

    def loss_fn(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[jax.Array, Any]:
        carry, ys = net.unroll(net.cell, params.cell, carry, batch.inputs)
        logits: Any = net.readout.apply(params.readout, ys[-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets[-1])
        return jnp.sum(losses * jnp.asarray(batch.weights)[-1]), carry

    return loss_fn


def labelled(xs: jax.Array, labels: jax.Array) -> tbptt.Batch:
    """Make a batch of sequences `[T, B, D]` of bytes in which only the last step counts."""
    T, B = xs.shape[:2]
    weights = jnp.zeros((T, B)).at[-1].set(1.0)
    return tbptt.Batch(xs / 255, jnp.broadcast_to(labels, (T, B)), weights)


class Recipe(NamedTuple):
    """Minibatch size B, initial learning rate of Adam, clipping norm, updates per turn."""

    B: int
    lr: float
    clip: float
    updates: int


def make_runners(
    name: str, net: Net, task: Task, k2: int, recipe: Recipe, seeds: tuple[int, ...]
) -> tuple[list[Runner], int]:
    """Compile training once for all seeds, by full BPTT if k2 = T, else by TBPTT(T, k2).

    Seeds run in turns, because a `vmap` over them is slower on a CPU.

    Returns:
      One runner per seed, and the temporary bytes of one gradient.
    """
    T, B, loss_fn = len(task.train[0]), recipe.B, last_step_loss(net)
    estimator = tbptt.full_bptt(loss_fn) if k2 == T else tbptt.truncated_bptt(loss_fn, T, k2)
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    optimizer = optax.chain(optax.clip_by_global_norm(recipe.clip), adam)
    carry = net.cell.initial_carry((B,))
    xs, labels = (jnp.asarray(array) for array in task.train)
    example = labelled(xs[:, :B], labels[:B])
    step: Any = tbptt.make_train_step(estimator, optimizer)

    def advance(
        state: Any, xs: jax.Array, rate: jax.Array, turn: jax.Array
    ) -> tuple[Any, jax.Array]:
        state.opt_state[1].hyperparams["learning_rate"] = rate
        picks = jax.random.choice(
            jax.random.fold_in(state.key, turn), xs.shape[1], (recipe.updates, B), replace=False
        )

        def update(state: Any, pick: jax.Array) -> tuple[Any, jax.Array]:
            batch = labelled(xs[:, pick], labels[pick])
            state, metrics = step(tbptt.rewind(estimator, state, carry, batch), batch)
            return state, metrics.loss

        state, losses = jax.lax.scan(update, state, picks)
        return state, losses.mean()

    def start(seed: int) -> Any:
        first, draw = jax.random.split(jax.random.key(seed))
        params = tbptt.init_params(first, net.cell, net.readout)
        return tbptt.init_state(estimator, optimizer, params, carry, example, draw)

    states = [start(seed) for seed in seeds]
    compiled = jax.jit(advance).lower(states[0], xs, jnp.asarray(0.0), jnp.int32(0)).compile()
    one: Any = jax.jit(
        lambda p: estimator.estimate(p, estimator.init(p, carry, example), example).grads
    )
    size = one.lower(states[0].params).compile().memory_analysis().temp_size_in_bytes

    def turn(state: Any, rate: Any, index: Any) -> tuple[Any, Any]:
        return compiled(state, xs, rate, index)

    return [
        Runner(f"{name}, seed {seed}", state, turn, recipe.updates)
        for seed, state in zip(seeds, states, strict=True)
    ], size


def test_accuracy(net: Net, task: Task) -> Callable[[Any], float]:
    """Make the function `params -> accuracy` on the test digits."""
    xs, labels = (jnp.asarray(array) for array in task.test)

    @jax.jit
    def right(params: Any) -> jax.Array:
        def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            xs, label = pair
            _, ys = net.unroll(net.cell, params.cell, net.cell.initial_carry(), xs / 255)
            logits: Any = net.readout.apply(params.readout, ys[-1])
            return logits.argmax(-1) == label

        return jax.lax.map(one, (xs.swapaxes(0, 1), labels), batch_size=TEST_PART).mean()

    return lambda params: float(right(params))
