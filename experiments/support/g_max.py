"""A real training run at several G_max: a tanh network whose gradients explode."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt

G_MAX = (0.01, 0.1, 1.0, 10.0, 100.0, math.inf)
T, B = 40, 64


def sweep_g_max(updates: int, seed: int) -> list[dict[str, Any]]:
    """Trains an Elman network of gain 1.5 to recall a sign 30 steps later, once for every G_max, by plain SGD.

    Returns:
      a row for each: g_max (None = no clipping), median and worst loss of the last 50 updates (None = NaN), the share of
      updates clipped, and the largest gradient norm.
    """
    cell, readout = tbptt.Elman(1, 32, gain=1.5), nn.Dense(1)
    estimator = tbptt.full_bptt(tbptt.sequence_loss(cell, readout, tbptt.squared_error))
    keys = jax.random.split(jax.random.key(seed), 3)
    signs = jax.random.rademacher(keys[0], (200, B), jnp.float32)
    inputs = (0.1 * jax.random.normal(keys[1], (200, T, B, 1))).at[:, 9, :, 0].set(signs)
    weights = jnp.zeros((T, B)).at[-1].set(1.0)
    params, carry = tbptt.init_params(keys[2], cell, readout), cell.initial_carry((B,))
    rows = []
    for g_max in G_MAX:
        optimizer = optax.chain(tbptt.watched(optax.clip_by_global_norm(g_max)), optax.sgd(0.05))
        state = tbptt.init_state(estimator, optimizer, params, carry, tbptt.Batch(inputs[0], jnp.ones((T, B, 1)), weights))
        step = tbptt.make_train_step(estimator, optimizer)
        seen = []
        for i in range(updates):
            targets = jnp.broadcast_to(signs[i % 200][None, :, None], (T, B, 1))
            batch = tbptt.Batch(inputs[i % 200], targets, weights)
            state, metrics = step(tbptt.rewind(estimator, state, carry, batch), batch)
            seen.append(metrics)
        losses, norms = (np.array([float(getattr(m, name)) for m in seen]) for name in ("loss", "grad_norm"))
        rows.append(
            {
                "g_max": None if math.isinf(g_max) else g_max,
                "loss": number(np.median(losses[-50:])),
                "worst": number(np.max(losses[-50:])),
                "clipped": float(np.mean([bool(m.clipped) for m in seen])),
                "largest_norm": number(np.max(norms)),
            }
        )
    return rows


def number(value: float) -> float | None:
    """JSON has no NaN and no infinity: None."""
    return float(value) if math.isfinite(value) else None
