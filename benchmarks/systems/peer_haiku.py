"""dm-haiku, as in its examples/rnn: `hk.dynamic_unroll` of `hk.LSTM`, `hk.transform`, optax."""

from typing import Any

import haiku as hk  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.systems import jax_forms
from benchmarks.systems.work import Case, Data, Form, Weights


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms."""
    dtype, optimizer = weights.w_x.dtype, jax_forms.optimizer()

    def unroll(carry: Any, inputs: Any) -> tuple[Any, Any]:
        xs = hk.one_hot(inputs, case.D, dtype=dtype) if case.symbols else inputs
        ys, carry = hk.dynamic_unroll(hk.LSTM(case.H, name="lstm"), xs, carry)
        return hk.BatchApply(hk.Linear(case.outputs, name="readout"))(ys), carry

    network: Any = hk.without_apply_rng(hk.transform(unroll))

    def loss_fn(params: Any, carry: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        outputs, carry = network.apply(params, carry, inputs)
        return jax_forms.mean_loss(outputs, targets), carry

    def step(state: Any, chunk: Any) -> tuple[Any, Any]:
        params, opt_state, carry = state
        (loss, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, *chunk)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry), loss

    zeros, params = jnp.zeros((case.B, case.H), dtype), converted(weights)
    start = (params, optimizer.init(params), hk.LSTMState(hidden=zeros, cell=zeros))
    return jax_forms.both_forms(step, start, data)


def converted(weights: Weights) -> dict[str, Any]:
    """Convert the weights: gates i, g, f, o, one matrix, and 1 added to the forget gate."""

    def order(a: Any) -> Any:
        i, f, g, o = np.split(a, 4, axis=-1)
        return np.concatenate([i, g, f, o], axis=-1)

    b = weights.b.copy()
    hidden = b.shape[0] // 4
    b[hidden : 2 * hidden] -= 1
    lstm = {"w": order(np.concatenate([weights.w_x, weights.w_h])), "b": order(b)}
    params = {"lstm/linear": lstm, "readout": {"w": weights.w_y, "b": weights.b_y}}
    return jax.tree.map(jnp.asarray, params)
