"""Theorem 1 of Aicher, Foti and Fox as an inequality: the measured bias of a window beside the bound on it, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tbptt

LAGS, LOSSES = 100, 10


def bound_rows(
    loss_fn: tbptt.LossFn, params: Any, carry: Any, batch: tbptt.Batch, k2s: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Measures, for the losses of the newest LOSSES steps, what TBPTT(1, k2) misses of their gradient.

        bias  = ||g_k2 - g||,    g over all T steps of the batch
        bound = M B(k2),    B from the norms by lag of LAGS lags and their tail (`choose_window`), M = max_k ||c_k|| / phi_k

    Args:
      batch: of at least LAGS + LOSSES - 1 steps, more for what lies beyond the lags measured.

    Returns:
      a row for each k2: k2, bias and bound (relative to ||g||), slack = bound / bias; None where there is no bound.
    """
    with jax.enable_x64(True):
        params, carry, batch = jax.tree.map(_wide, (params, carry, batch))
        steps = jnp.arange(len(batch.inputs))
        lanes = batch.inputs.shape[1:-1]
        newest = (steps >= len(steps) - LOSSES).astype(float)
        batch = batch._replace(weights=jnp.broadcast_to(newest.reshape(-1, *(1 for _ in lanes)), (len(steps), *lanes)))

        def run(estimator: tbptt.Estimator) -> tbptt.Gradient:
            return jax.jit(lambda p, c, b: estimator.estimate(p, estimator.init(p, c, b), b))(params, carry, batch)

        seen = run(tbptt.adaptive_bptt(loss_fn, 1, (1,), 0.5, lags=LAGS, losses=LOSSES)).info
        largest = jnp.max(jnp.where(seen.phi[:-1] > 0, seen.parts / seen.phi[:-1], 0))
        left = largest * jax.jit(lambda phi: tbptt.choose_window(phi, k2s, 0.5, LAGS // 2))(seen.phi).absolute
        full = run(tbptt.full_bptt(loss_fn)).grads
        size = float(tbptt.global_norm(full))
        rows = []
        for k2, bound in zip(k2s, np.asarray(left), strict=True):
            grads = run(tbptt.truncated_bptt(loss_fn, 1, k2)).grads
            bias = float(tbptt.global_norm(jax.tree.map(jnp.subtract, grads, full))) / size
            within = float(bound) / size if np.isfinite(bound) else None
            rows.append({"k2": k2, "bias": bias, "bound": within, "slack": within / bias if within and bias else None})
    return rows


def _wide(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
