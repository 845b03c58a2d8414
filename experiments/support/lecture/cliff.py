"""Compute the error surface of Pascanu, Mikolov and Bengio 2013, and descents on it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt

STEPS, START, TARGET = 50, 0.5, 0.7


def cliff_loss(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[jax.Array, Any]:
    """Compute E = sum_t weight_t (sigmoid(x_t) - target_t)^2 with x' = w sigmoid(x) + b."""

    def step(x: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = params["w"] * jax.nn.sigmoid(x) + params["b"]
        return x, (jax.nn.sigmoid(x) - target) ** 2

    carry, losses = jax.lax.scan(step, carry, batch.targets)
    return jnp.sum(losses * jnp.asarray(batch.weights)), carry


def cliff_batch() -> tbptt.Batch:
    """Make a batch of 50 steps in which only the last one counts."""
    weights = jnp.zeros((STEPS,)).at[-1].set(1.0)
    return tbptt.Batch(jnp.zeros((STEPS, 1)), jnp.full((STEPS,), TARGET), weights)


def surface(ws: np.ndarray, bs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return E and dE/dw on the grid `[len(bs), len(ws)]`, by full BPTT."""
    estimator, batch = tbptt.full_bptt(cliff_loss), cliff_batch()

    def at(w: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = estimator.estimate({"w": w, "b": b}, jnp.array(START), batch)
        return out.loss, out.grads["w"]

    grid = jax.jit(jax.vmap(jax.vmap(at, in_axes=(0, None)), in_axes=(None, 0)))
    error, slope = grid(jnp.asarray(ws, jnp.float32), jnp.asarray(bs, jnp.float32))
    return np.asarray(error, np.float64), np.asarray(slope, np.float64)


def descend(lr: float, max_norm: Sequence[float], starts: np.ndarray, updates: int) -> np.ndarray:
    """Run gradient descent from every start `[n, 2]`, clipped at each max_norm.

    Returns:
      The paths `[len(max_norm), n, updates + 1, 2]` of (w, b).
    """
    estimator, batch = tbptt.full_bptt(cliff_loss), cliff_batch()

    def path(max_norm: jax.Array, start: jax.Array) -> jax.Array:
        optimizer = optax.chain(optax.clip_by_global_norm(max_norm), optax.sgd(lr))

        def update(state: Any, _: None) -> tuple[Any, jax.Array]:
            params, opt_state = state
            grads = estimator.estimate(params, jnp.array(START), batch).grads
            change, opt_state = optimizer.update(grads, opt_state, params)
            params: Any = optax.apply_updates(params, change)
            return (params, opt_state), jnp.stack([params["w"], params["b"]])

        params = {"w": start[0], "b": start[1]}
        _, points = jax.lax.scan(update, (params, optimizer.init(params)), None, updates)
        return jnp.concatenate([start[None], points])

    every = jax.jit(jax.vmap(jax.vmap(path, in_axes=(None, 0)), in_axes=(0, None)))
    return np.asarray(
        every(jnp.asarray(max_norm, jnp.float32), jnp.asarray(starts, jnp.float32)), np.float64
    )


def final_errors(paths: np.ndarray) -> np.ndarray:
    """Return E at the end of each path `[..., updates, 2]`.

    Inf where the parameters are not finite.
    """
    estimator, batch = tbptt.full_bptt(cliff_loss), cliff_batch()

    def at(point: jax.Array) -> jax.Array:
        return estimator.estimate({"w": point[0], "b": point[1]}, jnp.array(START), batch).loss

    last = paths[..., -1, :]
    errors = np.asarray(
        jax.jit(jax.vmap(at))(jnp.asarray(last.reshape(-1, 2), jnp.float32)), np.float64
    )
    return np.where(np.isfinite(errors), errors, np.inf).reshape(last.shape[:-1])
