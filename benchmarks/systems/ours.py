"""Ours: `tbptt.make_train_epoch`, the epoch as one program, and `tbptt.make_train_step`, chunk by chunk.

On all cores: the same with `tbptt.distributed`, lanes dealt out over a device a core.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import tbptt
from benchmarks.systems import jax_forms
from benchmarks.systems.work import Case, Data, Form, Weights
from tbptt import distributed as parallel
from tbptt.cells.lstm import LSTMParams


class OneHot(nn.Module):
    """Symbols as vectors, in the place of an embedding."""

    symbols: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        return jax.nn.one_hot(inputs, self.symbols, dtype=self.dtype)


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Makes the forms on one device."""
    return made(case, weights, data, None)


def forms_on_cores(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Makes the forms on as many devices as there are and lanes go into; none where that is one of several."""
    devices = jax_forms.devices_for(case)
    return made(case, weights, data, parallel.batch_mesh(devices)) if devices else {}


def made(case: Case, weights: Weights, data: Data, mesh: Any) -> dict[str, Form]:
    """Makes the forms. The states are donated, so every epoch begins with a copy."""
    dtype = weights.w_x.dtype
    cell, readout = tbptt.LSTM(case.D, case.H, dtype=dtype), nn.Dense(case.outputs, param_dtype=dtype)
    loss = optax.softmax_cross_entropy_with_integer_labels if case.symbols else tbptt.squared_error
    embedding = OneHot(case.D, dtype) if case.symbols else None
    loss_fn = tbptt.sequence_loss(cell, readout, loss, embedding=embedding)
    if mesh is not None:
        loss_fn = parallel.sharded_loss(loss_fn, cell.initial_carry, mesh)
    # One chunk is the whole sequence: full BPTT. Otherwise disjoint windows, an update after each.
    estimator = tbptt.full_bptt(loss_fn) if case.N == 1 else tbptt.truncated_bptt(loss_fn, case.k, case.k)
    optimizer, (chunks, whole) = jax_forms.optimizer(), jax_forms.chunks_of(data)
    batches = [tbptt.Batch(*chunk) for chunk in chunks]
    everything = tbptt.Batch(*(a.reshape(case.N * case.k, *a.shape[2:]) for a in whole))
    params = converted(weights)
    epoch: Any = tbptt.make_train_epoch(estimator, optimizer, chunk=case.k)
    step: Any = tbptt.make_train_step(estimator, optimizer)

    def make_state(lanes: int) -> Any:
        example = jax.tree.map(lambda a: jax.ShapeDtypeStruct((case.k, lanes, *a.shape[2:]), a.dtype), everything)
        return tbptt.init_state(estimator, optimizer, params, cell.initial_carry((lanes,)), example)

    def begin() -> Any:
        state = make_state(case.B) if mesh is None else parallel.init_sharded_state(make_state, case.B, mesh)
        return jax.block_until_ready(state)

    if mesh is not None:
        state = begin()
        epoch, step = parallel.make_sharded_step(epoch, state), parallel.make_sharded_step(step, state)
        batches, everything = [parallel.put_batch(b, mesh) for b in batches], parallel.put_batch(everything, mesh)

    def run_epoch(state: Any) -> tuple[Any, Any]:
        state, metrics = epoch(state, everything)
        return state, metrics.loss

    def run_steps(state: Any) -> tuple[Any, Any]:
        losses = []
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append(metrics.loss)
        return state, losses

    block = jax.block_until_ready
    return {
        jax_forms.ONE_PROGRAM: Form(begin, run_epoch, jax_forms.compiling(epoch, begin(), everything), block),
        jax_forms.PER_CHUNK: Form(begin, run_steps, jax_forms.compiling(step, begin(), batches[0]), block),
    }


def converted(weights: Weights) -> tbptt.SequenceParams:
    """Puts the weights into our containers; the layout is ours."""
    w_x, w_h, b, w_y, b_y = (jnp.asarray(a) for a in weights)
    embedding: Any = {}  # the one-hot module has no variables; without an embedding none is looked for
    return tbptt.SequenceParams(LSTMParams(w_x, w_h, b), {"params": {"kernel": w_y, "bias": b_y}}, embedding)
