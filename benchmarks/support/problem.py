"""One LSTM layer with a linear readout over T steps, at fixed parameters: ours, and the textbook scan."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import tbptt
from benchmarks.systems.textbook import lstm_step
from benchmarks.systems.work import Weights


class Problem(NamedTuple):
    """params, the carry that enters, and a batch of T steps; and the two parts that a loss function is made of."""

    params: Any
    carry: Any
    batch: tbptt.Batch
    cell: Any
    readout: nn.Module


def make(T: int, B: int, D: int, H: int) -> Problem:
    """Draws a problem; the same for the same sizes."""
    cell, readout = tbptt.LSTM(D, H), nn.Dense(1, param_dtype=jnp.result_type(float))
    keys = jax.random.split(jax.random.key(0), 3)
    batch = tbptt.Batch(jax.random.normal(keys[0], (T, B, D)), jax.random.normal(keys[1], (T, B, 1)))
    return Problem(tbptt.init_params(keys[2], cell, readout), cell.initial_carry((B,)), batch, cell, readout)


def our_loss(problem: Problem, **options: Any) -> tbptt.LossFn:
    """Our loss function; options, `remat` for one, go to `sequence_loss`."""
    return tbptt.sequence_loss(problem.cell, problem.readout, tbptt.squared_error, **options)


def textbook_loss(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[Any, Any]:
    """The same sum of squared errors by the textbook scan, a `LossFn` like any user's."""
    readout = params.readout["params"]
    weights = Weights(params.cell.w_x, params.cell.w_h, params.cell.b, readout["kernel"], readout["bias"])
    (h, c), ys = jax.lax.scan(lambda c, x: lstm_step(weights, c, x), tuple(carry), batch.inputs)
    outputs = ys @ weights.w_y + weights.b_y
    return jnp.sum((outputs - batch.targets) ** 2), type(carry)(h, c)


def estimating(estimator: tbptt.Estimator, problem: Problem) -> tuple[Any, tuple[Any, ...]]:
    """A function to time, with its arguments: the loss and gradient of one `estimate` call from a fresh start."""
    memory = estimator.init(problem.params, problem.carry, problem.batch)
    return (lambda p, m, b: estimator.estimate(p, m, b)[:2]), (problem.params, memory, problem.batch)


def textbook_gradient(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[Any, Any]:
    """Loss and gradient of the mean by the textbook scan, through all of time."""

    def mean(params: Any) -> Any:
        return textbook_loss(params, carry, batch)[0] / batch.targets.size

    return jax.value_and_grad(mean)(params)


def relative_difference(a: Any, b: Any) -> float:
    """||a - b|| / ||b|| over all leaves of two gradients."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    off, size = (sum(jnp.vdot(x, x) for x in leaves) for leaves in ([x - y for x, y in pairs], [y for _, y in pairs]))
    return float(jnp.sqrt(jnp.asarray(off) / jnp.asarray(size)))
