"""Complex parameters: the recipe of docs/precision.md is descent in real and imaginary parts."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt

PAGE = (Path(__file__).parents[1] / "docs" / "precision.md").read_text()
(RECIPE,) = re.findall(r"^conjugate = (.*)$", PAGE, re.MULTILINE)
T, B, H, RATE, UPDATES = 40, 4, 3, 0.005, 30


def linear_recurrent_unit(params, carry, batch):
    """h_t = a h_{t-1} + b x_t, output Re(c h_t); a, b, c and h are complex."""

    def step(h, x):
        h = params["a"] * h + params["b"] * x
        return h, jnp.sum(params["c"] * h, axis=-1).real

    carry, outputs = jax.lax.scan(step, carry, batch.inputs)
    return jnp.sum((outputs - batch.targets) ** 2), carry


def of_parts(params, carry, batch):
    """The same with a real and an imaginary part of every parameter."""
    whole = jax.tree.map(jax.lax.complex, *params)
    return linear_recurrent_unit(whole, carry, batch)


def draw(radius, seed):
    random = np.random.default_rng(seed)
    angle, other = random.uniform(0.2, 1, H), random.normal(size=(4, H))
    b, c = other[0] + 1j * other[1], other[2] + 1j * other[3]
    return {"a": radius * np.exp(1j * angle), "b": b, "c": c / 2}


def train(loss_fn, params, optimizer):
    """Return the parameters and the losses of updates of full BPTT on one batch."""
    inputs, carry = np.random.default_rng(0).normal(size=(T, B, 1)), np.zeros((B, H), complex)
    batch = tbptt.Batch(inputs, outputs_of(draw(0.8, 2), inputs))
    estimator = tbptt.full_bptt(loss_fn)
    step = tbptt.make_train_step(estimator, optimizer)

    def update(state, _):
        state, metrics = step(tbptt.rewind(estimator, state, carry, batch), batch)
        return state, metrics.loss

    @jax.jit
    def run(params):
        state = tbptt.init_state(estimator, optimizer, params, carry, batch)
        state, losses = jax.lax.scan(update, state, length=UPDATES)
        return state.params, losses

    return jax.device_get(run(params))


def outputs_of(params, inputs):
    h, outputs = np.zeros((B, H), complex), []
    for x in inputs:
        h = params["a"] * h + params["b"] * x
        outputs.append(np.sum(params["c"] * h, axis=-1).real)
    return np.stack(outputs)


def test_conjugated_gradients_are_descent_in_real_and_imaginary_parts():
    conjugate = eval(RECIPE, {"optax": optax, "jax": jax, "jnp": jnp})
    sgd, params = optax.sgd(RATE), draw(0.7, 1)
    parts = tuple(jax.tree.map(part, params) for part in (np.real, np.imag))
    want, losses = train(of_parts, parts, sgd)
    got, same = train(linear_recurrent_unit, params, optax.chain(conjugate, sgd))
    np.testing.assert_allclose(same, losses, rtol=1e-10)
    for name, value in got.items():
        np.testing.assert_allclose(value.real, want[0][name], rtol=1e-10)
        np.testing.assert_allclose(value.imag, want[1][name], rtol=1e-10)
    _, raw = train(linear_recurrent_unit, params, sgd)
    assert losses[-1] < losses[0] / 3 and np.all(np.diff(losses) < 0)
    assert np.all(np.diff(raw[:20]) > 0)  # the imaginary parts ascend
