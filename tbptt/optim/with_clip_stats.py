"""Watching what a clipping transformation of optax does."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int


class ClipStatsState(NamedTuple):
    """inner: the with_clip_stats transformation's state; clipped: whether the last update was changed; clip_count: how often."""

    inner: Any
    clipped: Bool[Array, ""]
    clip_count: Int[Array, ""]


def with_clip_stats(transformation: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wraps a clipping transformation so that the train step can report whether it clipped.

        new = transformation(g);    clipped = any(new != g, NaN equal to NaN);    clip_count += clipped

    The gradients pass exactly as they would without it. A NaN that stays NaN is no change; a NaN that was zeroed is one,
    and so is a finite entry that became NaN (optax.clip_by_global_norm spreads one NaN to every leaf).

        optimizer = optax.chain(with_clip_stats(optax.clip_by_global_norm(1.0)), optax.adam(1e-3))

    Args:
      transformation: static; any optax transformation that leaves gradients alone unless it clips.

    Returns:
      The same transformation with a `ClipStatsState`, in which `make_train_step` finds `clipped`.
    """
    inner = optax.with_extra_args_support(transformation)

    def init(params: Any) -> ClipStatsState:
        return ClipStatsState(inner.init(params), jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ClipStatsState]:
        new, inner_state = inner.update(updates, state.inner, params, **extra)
        changed = jax.tree.map(lambda a, b: jnp.any((a != b) & ~(jnp.isnan(a) & jnp.isnan(b))), updates, new)
        clipped = jax.tree.reduce(jnp.logical_or, changed, jnp.zeros((), bool))
        return new, ClipStatsState(inner_state, clipped, state.clip_count + clipped)

    return optax.GradientTransformationExtraArgs(init, update)
