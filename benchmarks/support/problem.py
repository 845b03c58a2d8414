"""One LSTM layer with a linear readout at fixed parameters: by `tbptt`, by a textbook scan."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import tbptt
from benchmarks.systems.textbook import lstm_step
from benchmarks.systems.work import Weights


class Problem(NamedTuple):
    """The arguments of a loss function, and the two modules it is made of.

    params, carry: the parameters, and the carry that enters the first step
    batch:         T steps
    cell, readout: the cell and the flax module on its output
    """

    params: Any
    carry: Any
    batch: tbptt.Batch
    cell: Any
    readout: nn.Module


def make(T: int, B: int, D: int, H: int) -> Problem:
    """Draw a problem; equal sizes give an equal problem."""
    cell, readout = tbptt.LSTM(D, H), nn.Dense(1, param_dtype=jnp.result_type(float))
    keys = jax.random.split(jax.random.key(0), 3)
    xs, targets = jax.random.normal(keys[0], (T, B, D)), jax.random.normal(keys[1], (T, B, 1))
    params = tbptt.init_params(keys[2], cell, readout)
    return Problem(params, cell.initial_carry((B,)), tbptt.Batch(xs, targets), cell, readout)


def our_loss(problem: Problem, **options: Any) -> tbptt.LossFn:
    """Return the loss function of `tbptt`, with options of `sequence_loss`."""
    return tbptt.sequence_loss(problem.cell, problem.readout, tbptt.squared_error, **options)


def textbook_loss(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[Any, Any]:
    """Compute the same sum of squared errors by the textbook scan; a `LossFn`."""
    readout = params.readout["params"]
    cell = params.cell
    weights = Weights(cell.w_x, cell.w_h, cell.b, readout["kernel"], readout["bias"])
    (h, c), ys = jax.lax.scan(lambda c, x: lstm_step(weights, c, x), tuple(carry), batch.inputs)
    outputs = ys @ weights.w_y + weights.b_y
    return jnp.sum((outputs - batch.targets) ** 2), type(carry)(h, c)


def estimating(estimator: tbptt.Estimator, problem: Problem) -> tuple[Any, tuple[Any, ...]]:
    """Return a function to time and its arguments: loss and gradient of one `estimate` call."""
    memory = estimator.init(problem.params, problem.carry, problem.batch)
    arguments = problem.params, memory, problem.batch
    return (lambda p, m, b: estimator.estimate(p, m, b)[:2]), arguments


def textbook_gradient(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[Any, Any]:
    """Return mean loss and gradient by the textbook scan, through all of time."""

    def mean(params: Any) -> Any:
        return textbook_loss(params, carry, batch)[0] / batch.targets.size

    return jax.value_and_grad(mean)(params)


def relative_difference(a: Any, b: Any) -> float:
    """Return ||a - b|| / ||b|| over all leaves of two gradients."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    difference = sum(jnp.vdot(x - y, x - y) for x, y in pairs)
    size = sum(jnp.vdot(y, y) for _, y in pairs)
    return float(jnp.sqrt(jnp.asarray(difference) / jnp.asarray(size)))
