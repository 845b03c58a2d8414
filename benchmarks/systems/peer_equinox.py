"""Equinox, as documented: `eqx.nn.LSTMCell` in a `lax.scan`, `jax.vmap`, `eqx.filter_jit`."""

from typing import Any

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

from benchmarks.systems import jax_forms
from benchmarks.systems.work import Case, Data, Form, Weights, batch_major


class Model(eqx.Module):
    """One sequence: a cell scanned over time, and a readout at every step."""

    cell: eqx.nn.LSTMCell
    readout: eqx.nn.Linear

    def __call__(self, carry: Any, xs: Any) -> tuple[Any, Any]:
        def scan_fn(state: Any, x: Any) -> tuple[Any, Any]:
            state = self.cell(x, state)
            return state, state[0]

        carry, ys = jax.lax.scan(scan_fn, carry, xs)
        return carry, jax.vmap(self.readout)(ys)


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms."""
    dtype, optimizer = weights.w_x.dtype, jax_forms.optimizer()

    def loss_fn(model: Any, carry: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        carry, outputs = jax.vmap(model)(carry, jax_forms.features(inputs, case, dtype))
        return jax_forms.mean_loss(outputs, targets), carry

    def step(state: Any, chunk: Any) -> tuple[Any, Any]:
        model, opt_state, carry = state
        gradient = eqx.filter_value_and_grad(loss_fn, has_aux=True)
        (loss, carry), grads = gradient(model, carry, *chunk)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return (eqx.apply_updates(model, updates), opt_state, carry), loss

    zeros, model = jnp.zeros((case.B, case.H), dtype), converted(case, weights)
    start = (model, optimizer.init(eqx.filter(model, eqx.is_array)), (zeros, zeros))
    return jax_forms.both_forms(step, start, batch_major(data), jit=eqx.filter_jit)


def converted(case: Case, weights: Weights) -> Model:
    """Convert the weights: Equinox has every matrix transposed, and gates i, f, g, o as ours."""
    keys = jax.random.split(jax.random.key(0))
    cell = eqx.nn.LSTMCell(case.D, case.H, key=keys[0])
    values = [jnp.asarray(a.T) for a in weights]
    cell = eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias), cell, tuple(values[:3]))
    readout = eqx.nn.Linear(case.H, case.outputs, key=keys[1])
    readout = eqx.tree_at(lambda r: (r.weight, r.bias), readout, tuple(values[3:]))
    return Model(cell, readout)
