"""The textbook: `jax.lax.scan` over an LSTM step as it stands in books, `jax.value_and_grad`, optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.nn import sigmoid

from benchmarks.systems import jax_forms
from benchmarks.systems.work import Case, Data, Form, Weights


def lstm_step(params: Weights, carry: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
    """One step: (carry, y), gates split on the last axis."""
    h, c = carry
    i, f, g, o = jnp.split(x @ params.w_x + h @ params.w_h + params.b, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    h = sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Makes the forms."""
    params, optimizer = jax.tree.map(jnp.asarray, weights), jax_forms.optimizer()

    def loss_fn(params: Weights, carry: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        xs = jax_forms.features(inputs, case, params.w_x.dtype)
        carry, ys = jax.lax.scan(lambda c, x: lstm_step(params, c, x), carry, xs)
        return jax_forms.mean_loss(ys @ params.w_y + params.b_y, targets), carry

    def step(state: Any, chunk: Any) -> tuple[Any, Any]:
        params, opt_state, carry = state
        (loss, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, *chunk)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry), loss

    zeros = jnp.zeros((case.B, case.H), params.w_x.dtype)
    return jax_forms.both_forms(step, (params, optimizer.init(params), (zeros, zeros)), data)
