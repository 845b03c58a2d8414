"""Train a tanh network whose gradients explode with several clipping norms max_norm."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.common.json_file import finite_or_none

MAX_NORMS = (0.01, 0.1, 1.0, 10.0, 100.0, math.inf)
T, B = 40, 32
CELL, READOUT = tbptt.Elman(1, 32, gain=1.5), nn.Dense(1)


def sweep_max_norm(updates: int, seed: int) -> list[dict[str, Any]]:
    """Train an Elman network of gain 1.5 by SGD to recall a sign, once for every max_norm.

    Returns:
      A row for each: max_norm (None for no clipping), median and largest loss of the last 50
        updates (None for NaN), the fraction of updates clipped, and the largest gradient norm.
    """
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(200, B))
    inputs = 0.1 * rng.normal(size=(200, T, B, 1))
    inputs[:, 9, :, 0] = signs
    batches = (jnp.asarray(inputs, jnp.float32), jnp.asarray(signs, jnp.float32))
    params = tbptt.init_params(jax.random.key(seed), CELL, READOUT)
    metrics = _train(jnp.asarray(MAX_NORMS), params, *batches, updates)
    losses, norms, clipped = (
        np.asarray(a) for a in (metrics.loss, metrics.grad_norm, metrics.clipped)
    )
    return [
        {
            "max_norm": None if math.isinf(max_norm) else max_norm,
            "loss": finite_or_none(float(np.median(losses[i, -50:]))),
            "worst": finite_or_none(float(np.max(losses[i, -50:]))),
            "clipped": float(np.mean(clipped[i])),
            "largest_norm": finite_or_none(float(np.max(norms[i]))),
        }
        for i, max_norm in enumerate(MAX_NORMS)
    ]


@functools.partial(jax.jit, static_argnums=4)
def _train(
    max_norm: jax.Array, params: Any, inputs: jax.Array, signs: jax.Array, updates: int
) -> tbptt.Metrics:
    """Train once for every max_norm `[n]`, all in one program: metrics `[n, updates]`."""
    weights = jnp.zeros((T, B)).at[-1].set(1.0)

    def loss_fn(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[jax.Array, Any]:
        carry, ys = tbptt.plain_unroll(CELL, params.cell, carry, batch.inputs)
        outputs: Any = READOUT.apply(params.readout, ys)
        return jnp.sum(weights * tbptt.squared_error(outputs, batch.targets)), carry

    estimator, carry = tbptt.full_bptt(loss_fn), CELL.initial_carry((B,))

    def sequence(i: Any) -> tbptt.Batch:
        targets = jnp.broadcast_to(signs[i % 200][None, :, None], (T, B, 1))
        return tbptt.Batch(inputs[i % 200], targets, weights)

    def run(max_norm: jax.Array) -> tbptt.Metrics:
        optimizer = optax.chain(
            tbptt.optim.with_clip_stats(optax.clip_by_global_norm(max_norm)), optax.sgd(0.05)
        )
        update = tbptt.make_train_step(estimator, optimizer)

        def step(state: tbptt.TrainState, i: jax.Array) -> tuple[tbptt.TrainState, tbptt.Metrics]:
            batch = sequence(i)
            return update(tbptt.rewind(estimator, state, carry, batch), batch)

        start = tbptt.init_state(estimator, optimizer, params, carry, sequence(0))
        return jax.lax.scan(step, start, jnp.arange(updates))[1]

    return jax.vmap(run)(max_norm)
