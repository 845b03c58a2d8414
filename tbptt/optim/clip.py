"""Clipping by the global norm, without overflow or underflow; statistics of any other clipping."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from tbptt.numerics import check_max_norm, clip_tree, norm_dtype


class ClipState(NamedTuple):
    """State of `clip_by_global_norm`; every field is a scalar.

    clipped:          whether the last update was clipped
    scale:            the factor that multiplied the last update, 1 if it was not clipped
    last_norm:        norm of the last update before clipping; inf or NaN exactly if an entry was
    clip_count:       number of clipped updates
    update_count:     number of updates
    non_finite_count: number of updates with inf or NaN, which pass unchanged
    """

    clipped: Bool[Array, ""]
    scale: Float[Array, ""]
    last_norm: Float[Array, ""]
    clip_count: Int[Array, ""]
    update_count: Int[Array, ""]
    non_finite_count: Int[Array, ""]


class ClipStatsState(NamedTuple):
    """State of `with_clip_stats`.

    inner:      the state of the wrapped transformation
    clipped:    scalar, whether the last update was changed
    clip_count: scalar, the number of changed updates
    """

    inner: Any
    clipped: Bool[Array, ""]
    clip_count: Int[Array, ""]


def clip_by_global_norm(max_norm: ArrayLike) -> optax.GradientTransformation:
    """Clip updates by their global norm, for gradients of any size.

        g* = g                      if |g| <= max_norm, or if an entry is inf or NaN
        g* = max_norm g / |g|       otherwise

    The result equals `optax.clip_by_global_norm` to rounding unless squares overflow. There, optax
    returns zeros (for example for four float32 entries of 2e19), and spreads one inf or NaN to all
    leaves. This function leaves inf and NaN in place and counts them, for a later policy such as
    `skip_non_finite`. Entries of g* that are too small for their dtype are rounded to zero.

        optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

    Args:
      max_norm: positive number or scalar array, in the unit of the gradient norm; inf counts and
        never clips.

    Returns:
      An optax transformation with a `ClipState`. `make_train_step` reports its `clipped`. (For a
      plain `optax.clip_by_global_norm` the train step reports `clipped=None`; wrap it in
      `with_clip_stats`.)

    Raises:
      TypeError: max_norm is not a real number.
      ValueError: max_norm is concrete and not a positive scalar.
    """
    check_max_norm("clip_by_global_norm", max_norm)

    def init(params: Any) -> ClipState:
        dtype = norm_dtype(params)
        return ClipState(jnp.zeros((), bool), jnp.ones((), dtype), jnp.zeros((), dtype), *zeros(3))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ClipState]:
        del params
        new, norm, clipped = clip_tree(updates, max_norm)
        scale = jnp.where(clipped, max_norm / jnp.where(clipped, norm, 1), 1)
        scale = jnp.maximum(scale, jnp.finfo(state.scale.dtype).tiny)  # 1 / 3e38 is subnormal
        return new, ClipState(
            clipped=clipped,
            scale=scale.astype(state.scale.dtype),
            last_norm=norm.astype(state.last_norm.dtype),
            clip_count=count(state.clip_count, clipped),
            update_count=count(state.update_count, jnp.ones((), bool)),
            non_finite_count=count(state.non_finite_count, ~jnp.isfinite(norm)),
        )

    return optax.GradientTransformation(init, update)


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


def count(counter: Int[Array, ""], event: Bool[Array, ""]) -> Int[Array, ""]:
    """Add one to a counter if the event happened; saturate at the largest integer."""
    return jnp.where(event, optax.safe_increment(counter), counter)


def zeros(n: int) -> list[Int[Array, ""]]:
    """Return n counters as separate arrays, because no buffer can be donated twice."""
    return [jnp.zeros((), jnp.int32) for _ in range(n)]
