"""What the tests of estimators share: problems drawn by numpy, a user's own loss function, one compiled run."""

import functools

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
    "stack": tbptt.Stack((tbptt.LSTM(D, 3), tbptt.GRUResetBefore(3, 4))),
}
READOUT = nn.Dense(2, param_dtype=jnp.float64)
EXTRAS = ("plain", "weights", "resets", "mask", "all")


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
    return jax.eval_shape(lambda: (tbptt.init_params(jax.random.key(0), cell, READOUT), cell.initial_carry((B,))))


@functools.cache  # arrays cannot be changed; and a loss function that is the same one is traced once
def make(cell, extra="plain", seed=0, T=T):
    """(loss_fn, params, carry, batch). All of it is random, the biases too: no gradient is zero by accident."""
    random = np.random.default_rng([seed, 1])
    params, carry = jax.tree.map(lambda a: jnp.asarray(0.5 * random.normal(size=a.shape), a.dtype), _shapes(cell))
    return _loss_fn(cell), params, carry, draw_batch(extra, T, seed)


@functools.cache
def _loss_fn(cell):
    return tbptt.sequence_loss(cell, READOUT, tbptt.squared_error)


def own_loss(params, carry, batch):
    """A user's own LossFn: her own scan, no mask, a dict for a carry with a counter in it, log so that zeros hurt."""

    def body(state, now):
        x, y, weight, reset = now
        s = state["s"] if reset is None else jnp.where(reset, 0.3, state["s"])
        s = jnp.tanh(params["w"] * s + params["b"] + jnp.log(jnp.abs(x)))
        loss = (s - y) ** 2
        return {"s": s, "n": state["n"] + 1}, jnp.sum(loss if weight is None else weight * loss)

    carry, losses = jax.lax.scan(body, carry, (batch.inputs[..., 0], batch.targets[..., 0], batch.weights, batch.resets))
    return jnp.sum(losses), carry


def own_problem(extra="plain", T=T):
    """(loss_fn, params, carry, batch) of `own_loss`."""
    params, carry = {"w": np.array(0.9), "b": np.array(0.2)}, {"s": np.full(B, 0.2), "n": np.zeros((), np.int32)}
    return own_loss, *jax.tree.map(jnp.asarray, (params, carry)), draw_batch(extra, T, 0)


def run(estimator, params, carry, batch):
    """The first estimate of a stream, as numpy arrays: one program."""
    first = lambda params, carry, batch: estimator.estimate(params, estimator.init(params, carry, batch), batch)  # noqa: E731
    return jax.device_get(jax.jit(first)(params, carry, batch))
