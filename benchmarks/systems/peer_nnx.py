"""Flax nnx: `nnx.RNN` around `nnx.OptimizedLSTMCell`, `nnx.Optimizer`, and a step under `nnx.jit`.

`nnx.cached_partial` binds the step to its model and optimizer, as Flax's performance guide
recommends. In one program the same step is scanned, with the modules split into arrays.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.clock import compile_program
from benchmarks.systems import jax_forms
from benchmarks.systems.work import Case, Data, Form, Weights


class Model(nnx.Module):
    """A recurrent layer and a readout, time-major, `(carry, xs) -> (carry, outputs)`."""

    def __init__(self, case: Case, weights: Weights):
        rngs = nnx.Rngs(0)
        self.cell = nnx.OptimizedLSTMCell(case.D, case.H, param_dtype=weights.w_x.dtype, rngs=rngs)
        self.rnn = nnx.RNN(self.cell, time_major=True, return_carry=True, rngs=False)
        self.readout = nnx.Linear(case.H, case.outputs, param_dtype=weights.w_x.dtype, rngs=rngs)
        for layer, kernel, bias in (
            (self.cell.dense_h, weights.w_h, weights.b),
            (self.readout, weights.w_y, weights.b_y),
        ):
            nnx.update(layer, {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)})
        nnx.update(self.cell.dense_i, {"kernel": jnp.asarray(weights.w_x)})

    def __call__(self, carry: Any, xs: Any) -> tuple[Any, Any]:
        result: Any = self.rnn(xs, initial_carry=carry)
        carry, ys = result
        return carry, self.readout(ys)


def forms(case: Case, weights: Weights, data: Data) -> dict[str, Form]:
    """Make the forms. Modules change in place, so every epoch first restores the initial values."""
    dtype = weights.w_x.dtype
    chunks, whole = jax_forms.chunks_of(data)
    zeros = jnp.zeros((case.B, case.H), dtype)

    model = Model(case, weights)
    optimizer = nnx.Optimizer(model, jax_forms.optimizer(), wrt=nnx.Param)
    graph, fresh = nnx.split((model, optimizer))
    fresh = jax.tree.map(jnp.copy, fresh)

    def train_step(
        model: Any, optimizer: Any, carry: Any, inputs: Any, targets: Any
    ) -> tuple[Any, Any]:
        def loss_fn(model: Any) -> tuple[Any, Any]:
            leaving, outputs = model(carry, jax_forms.features(inputs, case, dtype))
            return jax_forms.mean_loss(outputs, targets), leaving

        (loss, leaving), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, grads)
        return leaving, loss

    jitted = nnx.jit(train_step)
    # Bound once for all epochs: new modules would be traced again.
    bound = nnx.cached_partial(jitted, model, optimizer)

    def begin() -> Any:
        nnx.update((model, optimizer), jax.tree.map(jnp.copy, fresh))
        return jax.block_until_ready((nnx.state((model, optimizer)), (zeros, zeros)))[1]

    def epoch(carry: Any) -> tuple[Any, Any]:
        losses = []
        for chunk in chunks:
            carry, loss = bound(carry, *chunk)
            losses.append(loss)
        return carry, losses

    def compile() -> tuple[float, int]:
        program = compile_program(jitted, model, optimizer, (zeros, zeros), *chunks[0])
        return program.compile_seconds, program.temp_bytes

    def block(value: Any) -> Any:
        # The last update changes the modules only, so wait for their arrays, too.
        return jax.block_until_ready((nnx.state((model, optimizer)), value))

    made = {jax_forms.PER_CHUNK: Form(begin, epoch, compile, block)}
    if len(chunks) > 1:

        def step(state: Any, chunk: Any) -> tuple[Any, Any]:
            arrays, carry = state
            merged = nnx.merge(graph, arrays)
            carry, loss = train_step(*merged, carry, *chunk)
            return (nnx.state(merged), carry), loss

        start = (fresh, (zeros, zeros))
        made[jax_forms.ONE_PROGRAM] = jax_forms.one_program(step, lambda: start, whole)
    return made
