"""`tbptt.make_train_epoch` as one program, and `tbptt.make_train_step` per chunk.

Each with `tbptt.unroll` and with `tbptt.backends.numba_cpu.unroll`, on one device and on all
cores: there by `tbptt.distributed`, with a device per core and the batch sharded over them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import tbptt
from benchmarks.systems import jax_forms
from benchmarks.systems.work import Case, Data, Form, Weights
from tbptt import distributed
from tbptt.cells.lstm import LSTMParams


class OneHot(nn.Module):
    """One-hot vectors of symbols, in the place of an embedding."""

    symbols: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Any) -> Any:
        return jax.nn.one_hot(inputs, self.symbols, dtype=self.dtype)


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms with `tbptt.unroll` on one device."""
    return made(case, weights, data, tbptt.unroll, None)


def numba_forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms with `tbptt.backends.numba_cpu.unroll` on one device."""
    return made(case, weights, data, tbptt.backends.numba_cpu.unroll, None)


def forms_on_cores(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms with `tbptt.unroll` on as many devices as divide the batch."""
    return _on_cores(case, weights, data, tbptt.unroll)


def numba_forms_on_cores(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms with `numba_cpu.unroll` on as many devices as divide the batch."""
    return _on_cores(case, weights, data, tbptt.backends.numba_cpu.unroll)


def _on_cores(case: Case, weights: Weights, data: Data, unroll: tbptt.UnrollFn) -> dict[str, Form]:
    devices = jax_forms.devices_for(case)
    mesh = distributed.batch_mesh(devices) if devices else None
    return made(case, weights, data, unroll, mesh) if devices else {}


def made(
    case: Case, weights: Weights, data: Data, unroll: tbptt.UnrollFn, mesh: Any
) -> dict[str, Form]:
    """Make both forms. The states are donated, so every epoch begins with a copy."""
    dtype = weights.w_x.dtype
    cell = tbptt.LSTM(case.D, case.H, dtype=dtype)
    readout = nn.Dense(case.outputs, param_dtype=dtype)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = cross_entropy if case.symbols else tbptt.squared_error
    embedding = OneHot(case.D, dtype) if case.symbols else None
    loss_fn = tbptt.sequence_loss(cell, readout, loss, embedding=embedding, unroll=unroll)
    if mesh is not None:
        loss_fn = distributed.sharded_loss(loss_fn, cell.initial_carry, mesh)
    # One chunk is the whole sequence: full BPTT. Otherwise disjoint windows, an update after each.
    k = case.k
    estimator = tbptt.full_bptt(loss_fn) if case.N == 1 else tbptt.truncated_bptt(loss_fn, k, k)
    optimizer, (chunks, whole) = jax_forms.optimizer(), jax_forms.chunks_of(data)
    batches = [tbptt.Batch(*chunk) for chunk in chunks]
    sequence = tbptt.Batch(*(a.reshape(case.N * k, *a.shape[2:]) for a in whole))
    params = converted(weights)
    epoch: Any = tbptt.make_train_epoch(estimator, optimizer, chunk=k)
    step: Any = tbptt.make_train_step(estimator, optimizer)

    def shape(batch_size: int, a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((k, batch_size, *a.shape[2:]), a.dtype)

    def make_state(batch_size: int) -> Any:
        example = jax.tree.map(functools.partial(shape, batch_size), sequence)
        carry = cell.initial_carry((batch_size,))
        return tbptt.init_state(estimator, optimizer, params, carry, example)

    def begin() -> Any:
        if mesh is None:
            return jax.block_until_ready(make_state(case.B))
        return jax.block_until_ready(distributed.init_sharded_state(make_state, case.B, mesh))

    if mesh is not None:
        state = begin()
        epoch = distributed.make_sharded_step(epoch, state)
        step = distributed.make_sharded_step(step, state)
        batches = [distributed.put_batch(batch, mesh) for batch in batches]
        sequence = distributed.put_batch(sequence, mesh)

    def run_epoch(state: Any) -> tuple[Any, Any]:
        state, metrics = epoch(state, sequence)
        return state, metrics.loss

    def run_steps(state: Any) -> tuple[Any, Any]:
        losses = []
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append(metrics.loss)
        return state, losses

    def form(run: Any, jitted: Any, batch: Any) -> Form:
        compiling = jax_forms.compiling(jitted, begin(), batch)
        return Form(begin, run, compiling, jax.block_until_ready)

    return {
        jax_forms.ONE_PROGRAM: form(run_epoch, epoch, sequence),
        jax_forms.PER_CHUNK: form(run_steps, step, batches[0]),
    }


def converted(weights: Weights) -> tbptt.SequenceParams:
    """Return the weights in our containers; the layout is ours."""
    w_x, w_h, b, w_y, b_y = (jnp.asarray(a) for a in weights)
    readout = {"params": {"kernel": w_y, "bias": b_y}}
    embedding: Any = {}  # the one-hot module has no variables
    return tbptt.SequenceParams(LSTMParams(w_x, w_h, b), readout, embedding)
