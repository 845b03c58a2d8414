"""Digits as sequences: the tasks, a loss at the last step alone, training for several seeds at once, and accuracy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.race import Runner
from tbptt.data import Digits

CLASSES, PERMUTATION_SEED, TEST_PART = 10, 92916, 250


class Task(NamedTuple):
    """Sequences `[T, N, D]` of grey values 0 .. 255 and their labels `[N]`, to train on and to test with."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Net(NamedTuple):
    """A cell, how it is run (`tbptt.unroll`, or `tbptt.parallel_unroll` if it can be), and its readout."""

    name: str
    cell: Any
    unroll: Callable[..., Any] = tbptt.unroll
    readout: nn.Module = nn.Dense(CLASSES)


def make_task(name: str, train: Digits, test: Digits) -> Task:
    """Lays images out in time: "rows" of 28 pixels (T = 28), single "pixels" (T = 784), or these "permuted" by one order."""

    def lay_out(digits: Digits) -> tuple[np.ndarray, np.ndarray]:
        if name == "rows":
            return digits.images.transpose(1, 0, 2), digits.labels
        pixels = digits.images.reshape(len(digits.images), -1)
        if name == "permuted":
            pixels = pixels[:, np.random.default_rng(PERMUTATION_SEED).permutation(pixels.shape[1])]
        elif name != "pixels":
            raise ValueError(f"a task is rows, pixels or permuted; got {name!r}")
        return np.ascontiguousarray(pixels.T[:, :, None]), digits.labels

    return Task(name, lay_out(train), lay_out(test))


def last_step_loss(net: Net) -> tbptt.LossFn:
    """Makes the loss of a label that is asked for once, after the last step: the readout runs there alone.

        loss_sum = sum over lanes of w_{T-1} cross_entropy(readout(y_{T-1}), label)

    Additive over time if the weights of all other steps are 0, as in `labelled`.
    """

    def loss_fn(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[jax.Array, Any]:
        carry, ys = net.unroll(net.cell, params.cell, carry, batch.inputs)
        logits: Any = net.readout.apply(params.readout, ys[-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets[-1])
        return jnp.sum(losses * jnp.asarray(batch.weights)[-1]), carry

    return loss_fn


def labelled(xs: jax.Array, labels: jax.Array) -> tbptt.Batch:
    """Makes a batch of sequences `[T, B, D]` of bytes whose last step alone counts."""
    T, B = xs.shape[:2]
    weights = jnp.zeros((T, B)).at[-1].set(1.0)
    return tbptt.Batch(xs.astype(jnp.float32) / 255, jnp.broadcast_to(labels, (T, B)), weights)


def make_runner(
    name: str, net: Net, task: Task, k2: int, *, B: int, clip: float, seeds: tuple[int, ...], updates: int
) -> tuple[Runner, int]:
    """Compiles training of all seeds side by side; k2 = T is full BPTT, k2 < T is TBPTT(T, k2).

    Returns:
      the runner, whose states have a leading axis of seeds, and the temporary bytes of one gradient of one seed.
    """
    T, loss_fn = len(task.train[0]), last_step_loss(net)
    estimator = tbptt.full_bptt(loss_fn) if k2 == T else tbptt.truncated_bptt(loss_fn, T, k2)
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    optimizer = optax.chain(optax.clip_by_global_norm(clip), adam)
    carry = net.cell.initial_carry((B,))
    xs, labels = (jnp.asarray(array) for array in task.train)
    step: Any = tbptt.make_train_step(estimator, optimizer)

    def start(seed: jax.Array) -> Any:
        params = tbptt.init_params(jax.random.key(seed), net.cell, net.readout)
        return tbptt.init_state(estimator, optimizer, params, carry, labelled(xs[:, :B], labels[:B]))

    def advance(state: Any, rate: jax.Array, turn: jax.Array, seed: jax.Array, xs: jax.Array) -> tuple[Any, jax.Array]:
        state.opt_state[1].hyperparams["learning_rate"] = rate
        key = jax.random.fold_in(jax.random.key(seed), turn)
        picks = jax.random.choice(key, xs.shape[1], (updates, B), replace=False)

        def update(state: Any, pick: jax.Array) -> tuple[Any, jax.Array]:
            batch = labelled(xs[:, pick], labels[pick])
            state, metrics = step(tbptt.rewind(estimator, state, carry, batch), batch)
            return state, metrics.loss

        state, losses = jax.lax.scan(update, state, picks)
        return state, losses.mean()

    many = jnp.asarray(seeds)
    states = jax.jit(jax.vmap(start))(many)
    jitted = jax.jit(jax.vmap(advance, in_axes=(0, None, None, 0, None)))
    compiled = jitted.lower(states, jnp.float32(0), jnp.int32(0), many, xs).compile()
    batch = labelled(xs[:, :B], labels[:B])
    one: Any = jax.jit(lambda p: estimator.estimate(p, estimator.init(p, carry, batch), batch).grads)
    params = jax.tree.map(lambda leaf: leaf[0], states.params)
    size = one.lower(params).compile().memory_analysis().temp_size_in_bytes
    return Runner(name, states, lambda state, rate, turn: compiled(state, rate, turn, many, xs), updates), size


def accuracies(net: Net, params: Any, task: Task) -> list[float]:
    """Returns the share of test digits that each seed's network names rightly."""
    xs, labels = task.test

    @jax.jit
    @jax.vmap
    def right(params: Any) -> jax.Array:
        def part(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            xs, labels = pair
            inputs = xs.swapaxes(0, 1).astype(jnp.float32) / 255
            _, ys = net.unroll(net.cell, params.cell, net.cell.initial_carry((len(labels),)), inputs)
            logits: Any = net.readout.apply(params.readout, ys[-1])
            return jnp.sum(logits.argmax(-1) == labels)

        n = -(-len(labels) // TEST_PART)
        if len(labels) % n:
            raise ValueError(f"{len(labels)} test digits do not split into {n} equal parts")
        return jax.lax.map(part, (cut(xs.swapaxes(0, 1), n), cut(labels, n))).sum() / len(labels)

    def cut(array: np.ndarray, n: int) -> jax.Array:
        return jnp.asarray(array).reshape(n, -1, *array.shape[1:])

    return [float(share) for share in right(params)]
