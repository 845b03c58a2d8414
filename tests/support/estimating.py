"""Random problems, a loss function of a user and compiled runs, for tests of estimators."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tbptt

T, B, D = 12, 3, 2
CELLS = {
    "elman": tbptt.Elman(D, 4, gain=1.2),
    "gru": tbptt.GRU(D, 4),
    "lstm": tbptt.LSTM(D, 4),
    "linear": tbptt.DiagonalLinear(D, 4),
    "stack": tbptt.Stack((tbptt.LSTM(D, 3), tbptt.cells.GRUResetBefore(3, 4))),
}
READOUT = nn.Dense(2, param_dtype=jnp.float64)


@functools.cache
def draw_batch(extra, steps, seed):
    random, has = np.random.default_rng(seed), lambda name: extra == "all" or name in extra.split()
    batch = tbptt.Batch(
        inputs=random.normal(size=(steps, B, D)),
        targets=random.normal(size=(steps, B, 2)),
        weights=random.random((steps, B)) if has("weights") else None,
        resets=random.random((steps, B)) < 0.2 if has("resets") else None,
        mask=random.random((steps, B)) < 0.7 if has("mask") else None,
    )
    return jax.tree.map(jnp.asarray, batch)


@functools.cache
def _shapes(cell):
    return jax.eval_shape(
        lambda: (tbptt.init_params(jax.random.key(0), cell, READOUT), cell.initial_carry((B,)))
    )


@functools.cache  # arrays are immutable, and the same loss function is traced once
def make(cell, extra="plain", seed=0, T=T):
    """Return (loss_fn, params, carry, batch), all random, so that no gradient is zero by chance."""
    random = np.random.default_rng([seed, 1])
    params, carry = jax.tree.map(
        lambda a: jnp.asarray(0.5 * random.normal(size=a.shape), a.dtype), _shapes(cell)
    )
    return _loss_fn(cell), params, carry, draw_batch(extra, T, seed)


@functools.cache
def _loss_fn(cell):
    return tbptt.sequence_loss(cell, READOUT, tbptt.squared_error)


def own_loss(params, carry, batch):
    """A LossFn of a user: a scan, no mask, a dict carry with a counter, log of inputs (not 0)."""

    def body(state, now):
        x, y, weight, reset = now
        s = state["s"] if reset is None else jnp.where(reset, 0.3, state["s"])
        s = jnp.tanh(params["w"] * s + params["b"] + jnp.log(jnp.abs(x)))
        loss = (s - y) ** 2
        return {"s": s, "n": state["n"] + 1}, jnp.sum(loss if weight is None else weight * loss)

    carry, losses = jax.lax.scan(
        body, carry, (batch.inputs[..., 0], batch.targets[..., 0], batch.weights, batch.resets)
    )
    return jnp.sum(losses), carry


def own_problem(extra="plain", T=T):
    """Return (loss_fn, params, carry, batch) of `own_loss`."""
    params, carry = (
        {"w": np.array(0.9), "b": np.array(0.2)},
        {"s": np.full(B, 0.2), "n": np.zeros((), np.int32)},
    )
    return own_loss, *jax.tree.map(jnp.asarray, (params, carry)), draw_batch(extra, T, 0)


def raveled(tree):
    """Return a tree as one vector, and the function back, as numpy: no program per shape."""
    leaves, structure = jax.tree.flatten(tree)
    shapes = [np.shape(leaf) for leaf in leaves]
    ends = np.cumsum([math.prod(shape) for shape in shapes])

    def back(flat):
        parts = [flat[e - math.prod(s) : e].reshape(s) for e, s in zip(ends, shapes, strict=True)]
        return jax.tree.unflatten(structure, parts)

    return np.concatenate([np.ravel(leaf) for leaf in leaves]), back


@functools.cache  # calls of the same estimator share a program
def _first(estimator):
    def first(params, carry, batch):
        return estimator.estimate(params, estimator.init(params, carry, batch), batch)

    return jax.jit(first)


def run(estimator, params, carry, batch):
    """Return the first estimate of a stream, by one program, as numpy arrays."""
    return jax.device_get(_first(estimator)(params, carry, batch))
