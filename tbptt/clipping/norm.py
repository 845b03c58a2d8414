"""A global norm that neither overflows nor underflows, and clipping by it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int


class Measure(NamedTuple):
    """The norm of each batch element's part of a tree, as `size / down` (which may be too large for the dtype).

    down: a power of two that brings the largest entry to about 1; 1 where an entry is not finite
    size: the norm of the tree times down
    norm: size / down, at most the largest finite number; inf or NaN exactly where an entry is inf or NaN
    """

    down: Float[Array, "*batch"]
    size: Float[Array, "*batch"]
    norm: Float[Array, "*batch"]


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


def global_norm(tree: Any) -> Float[Array, ""]:
    """Computes the Euclidean norm of all entries of a tree together, without overflow or underflow on the way.

        norm = sqrt(sum_i (g_i s)^2) / s,    s = the power of two that brings max_i |g_i| to about 1

    in float32, or in float64 if a leaf is. Where optax.tree.norm is right, the two agree to rounding; it squares in the
    gradient's own dtype, so 2e19 in float32 and 300 in float16 are infinite for it, and 1e-30 is zero.

    Args:
      tree: floating leaves of any dtypes, mixed; integer leaves do not count; no leaf at all has norm 0.

    Returns:
      The norm: 0 at 0 (with gradient 0), inf or NaN exactly if an entry is inf or NaN, and the dtype's largest number
      if the true norm is above it. XLA reads subnormal float32 (below 1.2e-38) as zero on most devices; so does this.
    """
    return measure(tree).norm


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
      optax.clip_by_global_norm the train step knows nothing, and reports `clipped=None`: wrap that one in `watched`.)

    Raises:
      ValueError: max_norm is a number that is not positive.
    """
    check_max_norm("clip_by_global_norm", max_norm)

    def init(params: Any) -> ClipState:
        dtype = _norm_dtype(params)
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


def measure(tree: Any, batch_dims: int = 0) -> Measure:
    """Measures the norm over all but the first `batch_dims` axes of all floating leaves together."""
    dtype = _norm_dtype(tree)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    wide = [jnp.abs(leaf).astype(dtype) for leaf in leaves]
    axes = [tuple(range(batch_dims, leaf.ndim)) for leaf in leaves]
    largest = jnp.zeros((), dtype)
    for leaf, over in zip(wide, axes, strict=True):
        largest = jnp.maximum(largest, jnp.max(leaf, axis=over, initial=0))
    # A power of two is exact, and is never divided by: XLA multiplies by the reciprocal, which is 0 for 3e38.
    largest = jax.lax.stop_gradient(largest)  # the norm does not depend on it
    usable = jnp.isfinite(largest) & (largest > 0)
    _, exponent = jnp.frexp(jnp.where(usable, largest, 1))
    lowest = int(jnp.finfo(dtype).minexp)
    exponent = jnp.clip(exponent, lowest, -lowest)
    down, up = jnp.ldexp(jnp.ones((), dtype), -exponent), jnp.ldexp(jnp.ones((), dtype), exponent)
    total = jnp.zeros((), dtype)
    for leaf, over in zip(wide, axes, strict=True):
        total = total + jnp.sum(jnp.square(leaf * _expand(down, leaf)), axis=over)
    size = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    norm = jnp.where(jnp.isfinite(size), jnp.minimum(size * up, jnp.finfo(dtype).max), size)
    return Measure(down, size, norm)


def clip_tree(tree: Any, max_norm: ArrayLike, batch_dims: int = 0) -> tuple[Any, Array, Array]:
    """Clips each batch element's part of a tree; returns (tree, norms before, whether clipped), the last two `[*batch]`."""
    down, size, norm = measure(tree, batch_dims)
    clipped = jnp.isfinite(norm) & (norm > max_norm)
    factor = jnp.asarray(max_norm, norm.dtype) / jnp.where(clipped, size, 1)

    def clip(leaf: Any) -> Any:
        if not is_floating(leaf):
            return leaf
        wide = leaf.astype(jnp.promote_types(leaf.dtype, norm.dtype))
        new = wide * _expand(down, leaf) * _expand(factor, leaf)
        return jnp.where(_expand(clipped, leaf), new.astype(leaf.dtype), leaf)

    return jax.tree.map(clip, tree), norm, clipped


def count(counter: Int[Array, ""], event: Bool[Array, ""]) -> Int[Array, ""]:
    """Adds one if the event happened; stays at the largest integer instead of wrapping round."""
    return jnp.where(event, optax.safe_increment(counter), counter)


def zeros(n: int) -> list[Int[Array, ""]]:
    """Makes n counters, each an array of its own: the train step donates them, and one buffer can be donated once."""
    return [jnp.zeros((), jnp.int32) for _ in range(n)]


def is_floating(leaf: Any) -> bool:
    """Says whether a leaf counts: integers, and the empty cotangents that JAX gives them, do not."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def check_max_norm(name: str, max_norm: ArrayLike) -> None:
    """Raises a ValueError if max_norm is a Python number that is not positive."""
    if isinstance(max_norm, int | float) and not max_norm > 0:
        raise ValueError(f"{name}'s max_norm must be a positive number (inf: never clip); got {max_norm}")


def _norm_dtype(tree: Any) -> DTypeLike:
    """At least float32, and the widest of the leaves."""
    dtypes = [jnp.finfo(jnp.result_type(leaf)).dtype for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    return jnp.result_type(jnp.float32, *dtypes)


def _expand(values: Array, leaf: Array) -> Array:
    """Gives `[*batch]` values the rank of a leaf `[*batch, ...]`."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim))
