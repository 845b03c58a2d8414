"""Statistics of a clipping transformation of optax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int


class ClipStatsState(NamedTuple):
    """State of `with_clip_stats`.

    inner:      the state of the wrapped transformation
    clipped:    scalar, whether the last update was changed
    clip_count: scalar, the number of changed updates
    """

    inner: Any
    clipped: Bool[Array, ""]
    clip_count: Int[Array, ""]


def with_clip_stats(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wrap a clipping transformation so that a train step can report whether it clipped.

        new = transformation(g)
        clipped = any(new != g), with NaN equal to NaN
        clip_count += clipped

    The gradients are those of the wrapped transformation. A NaN that remains NaN does not count as
    clipped; a NaN that becomes 0, and a finite entry that becomes NaN, do. (The global norm
    clipping of optax spreads one NaN to every leaf.)

        optimizer = optax.chain(with_clip_stats(optax.clip_by_global_norm(1.0)), optax.adam(1e-3))

    Args:
      transformation: static; any optax transformation that returns a gradient unchanged unless it
        clips.

    Returns:
      An optax transformation with a `ClipStatsState`. `make_train_step` reports its `clipped`.
    """
    inner = optax.with_extra_args_support(transformation)

    def init(params: Any) -> ClipStatsState:
        return ClipStatsState(inner.init(params), jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, ClipStatsState]:
        new, inner_state = inner.update(updates, state.inner, params, **extra)

        def differs(a: Array, b: Array) -> Array:
            return jnp.any((a != b) & ~(jnp.isnan(a) & jnp.isnan(b)))

        changed = jax.tree.map(differs, updates, new)
        clipped = jax.tree.reduce(jnp.logical_or, changed, jnp.zeros((), bool))
        return new, ClipStatsState(inner_state, clipped, state.clip_count + clipped)

    return optax.GradientTransformationExtraArgs(init, update)
