"""Compare the bias of a window with the bound of Theorem 1 of Aicher, Foti and Fox."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tbptt

LAGS, LOSSES = 100, 10


def bound_rows(
    loss_fn: tbptt.LossFn, params: Any, carry: Any, batch: tbptt.Batch, k2s: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Measure the bias of TBPTT(1, k2) for the newest LOSSES losses, and its bound.

        bias  = ||g_k2 - g||,    g over all T steps of the batch
        bound = M B(k2),    B from the norms by lag and their tail (`choose_window`),
                            M = max_k ||c_k|| / phi_k

    Args:
      batch: at least LAGS + LOSSES - 1 steps; more steps include larger lags in g.

    Returns:
      A row for each k2: k2, bias and bound (relative to ||g||), slack = bound / bias; None if there
        is no bound.
    """
    with jax.enable_x64(True):
        point = jax.tree.map(_wide, (params, carry, batch))

        def run(function: Callable[[Any, Any, tbptt.Batch, tbptt.Batch], Any]) -> Any:
            early, late = (
                jax.tree.map(lambda a, s=s: a[s], point[2])
                for s in (np.s_[:-LOSSES], np.s_[-LOSSES:])
            )
            return jax.jit(function)(*point[:2], early, late)

        def full(params: Any, carry: Any, early: tbptt.Batch, late: tbptt.Batch) -> Any:
            return jax.grad(lambda p: loss_fn(p, loss_fn(p, carry, early)[1], late)[0])(params)

        def truncated(
            k2: int, params: Any, carry: Any, early: tbptt.Batch, late: tbptt.Batch
        ) -> Any:
            one = tbptt.truncated_bptt(loss_fn, 1, k2)
            memory = one.estimate(params, one.init(params, carry, early), early).memory
            gradient = one.estimate(params, memory, late)
            return jax.tree.map(lambda g: g * jnp.sum(gradient.info.weights), gradient.grads)

        def bounds(params: Any, carry: Any, early: tbptt.Batch, late: tbptt.Batch) -> jax.Array:
            one = tbptt.adaptive_bptt(loss_fn, 1, (1,), 0.5, lags=LAGS, losses=LOSSES)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), early, late)
            info = one.estimate(params, one.init(params, carry, both), both).info
            largest = jnp.max(jnp.where(info.phi[:-1] > 0, info.contributions / info.phi[:-1], 0))
            weight = jnp.sum(info.weights[-LOSSES:])
            return weight * largest * tbptt.choose_window(info.phi, k2s, 0.5, LAGS // 2).absolute

        g, left = run(full), np.asarray(run(bounds))
        size = float(tbptt.optim.global_norm(g))
        rows = []
        for k2, bound in zip(k2s, left, strict=True):
            missed = jax.tree.map(jnp.subtract, run(functools.partial(truncated, k2)), g)
            bias, within = (
                float(tbptt.optim.global_norm(missed)) / size,
                float(bound) / size if np.isfinite(bound) else None,
            )
            rows.append(
                {
                    "k2": k2,
                    "bias": bias,
                    "bound": within,
                    "slack": within / bias if within and bias else None,
                }
            )
    return rows


def _wide(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
