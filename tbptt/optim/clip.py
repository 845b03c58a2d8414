"""Clipping by a global norm that neither overflows nor underflows."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from tbptt.numerics import check_max_norm, clip_tree, norm_dtype


class ClipState(NamedTuple):
    """What `clip_by_global_norm` did; every field a scalar.

    clipped, scale:           of the last update: whether it was clipped, and by what it was multiplied (1 if it was not)
    last_norm:                its norm before clipping; inf or NaN exactly if an entry was
    clip_count, update_count: how many updates were clipped, of how many
    non_finite_count:         how many held inf or NaN, and passed through unchanged
    """

    clipped: Bool[Array, ""]
    scale: Float[Array, ""]
    last_norm: Float[Array, ""]
    clip_count: Int[Array, ""]
    update_count: Int[Array, ""]
    non_finite_count: Int[Array, ""]


def clip_by_global_norm(max_norm: ArrayLike) -> optax.GradientTransformation:
    """Clips by the global norm, whatever the size of the gradient: the same direction, and no silent zero.

        g* = g                      if |g| <= max_norm, or if an entry is inf or NaN
        g* = max_norm g / |g|       otherwise

    Equal to optax.clip_by_global_norm to rounding where that is right. It is not where squares overflow: optax makes
    zeros of four finite float32 entries of 2e19, and spreads one inf or NaN to all leaves. Here inf and NaN stay where
    they are, for a policy further down the chain (`skip_non_finite`, ...), and are counted. Entries of g* that are too
    small for their own dtype are rounded to zero, as anywhere.

        optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

    Args:
      max_norm: the lecture's G_max; positive; inf only counts. A number or a scalar array.

    Returns:
      The transformation, with a `ClipState`, in which `make_train_step` finds `clipped`. (Of a plain
      optax.clip_by_global_norm the train step knows nothing, and reports `clipped=None`: wrap that one in `with_clip_stats`.)

    Raises:
      ValueError: max_norm is known and no positive scalar. TypeError: it is no real number.
    """
    check_max_norm("clip_by_global_norm", max_norm)

    def init(params: Any) -> ClipState:
        dtype = norm_dtype(params)
        return ClipState(jnp.zeros((), bool), jnp.ones((), dtype), jnp.zeros((), dtype), *zeros(3))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ClipState]:
        del params
        new, norm, clipped = clip_tree(updates, max_norm)
        scale = jnp.where(clipped, max_norm / jnp.where(clipped, norm, 1), 1)
        scale = jnp.maximum(scale, jnp.finfo(state.scale.dtype).tiny)  # 1 / 3e38 would read 0
        return new, ClipState(
            clipped=clipped,
            scale=scale.astype(state.scale.dtype),
            last_norm=norm.astype(state.last_norm.dtype),
            clip_count=count(state.clip_count, clipped),
            update_count=count(state.update_count, jnp.ones((), bool)),
            non_finite_count=count(state.non_finite_count, ~jnp.isfinite(norm)),
        )

    return optax.GradientTransformation(init, update)


def count(counter: Int[Array, ""], event: Bool[Array, ""]) -> Int[Array, ""]:
    """Adds one if the event happened; stays at the largest integer instead of wrapping round."""
    return jnp.where(event, optax.safe_increment(counter), counter)


def zeros(n: int) -> list[Int[Array, ""]]:
    """Makes n counters, each an array of its own: the train step donates them, and one buffer can be donated once."""
    return [jnp.zeros((), jnp.int32) for _ in range(n)]
