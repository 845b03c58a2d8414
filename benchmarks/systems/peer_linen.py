"""Flax linen, as documented: `nn.RNN` around `OptimizedLSTMCell` or `LSTMCell`, `TrainState`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState

from benchmarks.systems import jax_forms
from benchmarks.systems.work import Case, Data, Form, Weights

GATES = ("i", "f", "g", "o")


class Model(nn.Module):
    """A recurrent layer and a readout, time-major, `(carry, xs) -> (carry, outputs)`."""

    cell: nn.RNNCellBase
    outputs: int

    @nn.compact
    def __call__(self, carry: Any, xs: Any) -> tuple[Any, Any]:
        rnn = nn.RNN(self.cell, time_major=True, return_carry=True)
        carry, ys = rnn(xs, initial_carry=carry)
        return carry, nn.Dense(self.outputs, name="readout")(ys)


def optimized(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms of the cell that Flax recommends for speed."""
    return _forms(nn.OptimizedLSTMCell(case.H), case, weights, data)


def documented(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms of the cell in the examples of `nn.RNN`."""
    return _forms(nn.LSTMCell(case.H), case, weights, data)


def _forms(cell: nn.RNNCellBase, case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    model, dtype = Model(cell, case.outputs), weights.w_x.dtype

    def loss_fn(params: Any, carry: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        xs = jax_forms.features(inputs, case, dtype)
        carry, outputs = model.apply({"params": params}, carry, xs)
        return jax_forms.mean_loss(outputs, targets), carry

    def step(state: Any, chunk: Any) -> tuple[Any, Any]:
        train_state, carry = state
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, carry), grads = gradient(train_state.params, carry, *chunk)
        return (train_state.apply_gradients(grads=grads), carry), loss

    # The carry of linen is (c, h).
    zeros = jnp.zeros((case.B, case.H), dtype)
    tx = jax_forms.optimizer()
    start = TrainState.create(apply_fn=model.apply, params=converted(weights), tx=tx)
    # A Python 0 has a weak type and would be traced twice.
    start = start.replace(step=jnp.zeros((), jnp.int32))
    return jax_forms.both_forms(step, (start, (zeros, zeros)), data)


def converted(weights: Weights) -> dict[str, Any]:
    """Convert the weights: one array per gate, and the bias on the recurrent side."""
    w_x, w_h, b = (np.split(a, 4, axis=-1) for a in weights[:3])
    cell = {f"i{gate}": {"kernel": w_x[n]} for n, gate in enumerate(GATES)}
    cell |= {f"h{gate}": {"kernel": w_h[n], "bias": b[n]} for n, gate in enumerate(GATES)}
    params = {"cell": cell, "readout": {"kernel": weights.w_y, "bias": weights.b_y}}
    return jax.tree.map(jnp.asarray, params)
