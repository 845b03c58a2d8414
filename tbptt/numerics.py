"""Numerics of trees: a global norm without overflow, selection by batch row, floating leaves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int


class Measure(NamedTuple):
    """A norm in scaled form, `size 2^exponent`, whose value may be too large for the dtype.

    size:     the norm of the tree times `down`; inf or NaN exactly where an entry is inf or NaN
    exponent: binary exponent of the largest entry; 0 if all entries are 0 or one is not finite
    down:     2^-exponent
    norm:     size / down, at most the largest finite number; inf or NaN exactly where an entry is
      inf or NaN
    """

    size: Float[Array, "*batch"]
    exponent: Int[Array, "*batch"]
    down: Float[Array, "*batch"]
    norm: Float[Array, "*batch"]


def global_norm(tree: Any) -> Float[Array, ""]:
    """Compute the Euclidean norm of all entries of a tree, without intermediate over- or underflow.

        norm = sqrt(sum_i (g_i s)^2) / s,    s = the power of two that brings max_i |g_i| to about 1

    The norm is computed in float32, or in float64 if a leaf is float64. `optax.tree.norm` squares
    in the dtype of the gradient: 2e19 in float32 and 300 in float16 overflow there, and 1e-30
    underflows. Elsewhere the two agree to rounding.

    Args:
      tree: floating leaves, whose dtypes may differ; integer leaves are ignored.

    Returns:
      The norm, a scalar: 0 for zeros (with gradient 0) and for a tree without leaves; inf or NaN
      exactly if an entry is inf or NaN; the largest number of the dtype if the true norm is above
      it. XLA treats subnormal float32 numbers (below 1.2e-38) as zero on most devices.
    """
    return fast_measure(tree).norm


def measure(tree: Any, batch_dims: int = 0) -> Measure:
    """Compute the joint norm of all floating leaves, over all but the first `batch_dims` axes.

    Returns:
      A `Measure` with fields of shape `[*batch]`, the first `batch_dims` axes of the leaves.
    """
    dtype = norm_dtype(tree)
    leaves = floating_leaves(tree)
    wide = [jnp.abs(leaf).astype(dtype) for leaf in leaves]
    axes = [tuple(range(batch_dims, leaf.ndim)) for leaf in leaves]
    largest = jnp.zeros((), dtype)
    for leaf, over in zip(wide, axes, strict=True):
        largest = jnp.maximum(largest, jnp.max(leaf, axis=over, initial=0))
    # Scaling by a power of two is exact. Multiply, never divide: XLA divides by multiplying with
    # the reciprocal, which is 0 for 3e38.
    largest = jax.lax.stop_gradient(largest)  # the norm does not depend on it
    usable = jnp.isfinite(largest) & (largest > 0)
    _, exponent = jnp.frexp(jnp.where(usable, largest, 1))
    lowest = int(jnp.finfo(dtype).minexp)
    exponent = jnp.where(usable, jnp.clip(exponent, lowest, -lowest), 0)
    down, up = jnp.ldexp(jnp.ones((), dtype), -exponent), jnp.ldexp(jnp.ones((), dtype), exponent)
    total = jnp.zeros((), dtype)
    for leaf, over in zip(wide, axes, strict=True):
        # The maximum has no effect on the value. Without it XLA rewrites the square of a constant
        # leaf as leaf^2 down^2 = inf 0.
        scaled = jnp.maximum(leaf * expand(down, leaf), 0)
        total = total + jnp.sum(jnp.square(scaled), axis=over)
    size = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    norm = jnp.where(jnp.isfinite(size), jnp.minimum(size * up, jnp.finfo(dtype).max), size)
    return Measure(size, exponent, down, norm)


def fast_measure(tree: Any) -> Measure:
    """Compute `measure(tree)`, with exponent 0 and down 1 on a CPU if plain squares are safe.

    On a CPU a branch on the plain sum of squares avoids the second pass over the leaves. On an
    accelerator the second pass costs less than a branch, which waits for the host.
    """
    leaves = floating_leaves(tree)
    leaves = [jnp.abs(leaf) if jnp.iscomplexobj(leaf) else leaf for leaf in leaves]
    return jax.lax.platform_dependent(leaves, cpu=_fast_measure_cpu, default=measure)


@jax.jit  # outside of jit, a cond would be compiled again at every call
def _fast_measure_cpu(leaves: list[Array]) -> Measure:
    dtype = norm_dtype(leaves)
    total = sum((jnp.sum(jnp.square(leaf.astype(dtype))) for leaf in leaves), jnp.zeros((), dtype))
    # Safe: underflow of the squares is below the rounding of total, nothing overflowed, no NaN.
    limits = jnp.finfo(dtype)
    least = sum(leaf.size for leaf in leaves) * float(limits.tiny) / float(limits.eps)
    is_safe = (total > least) & (total <= limits.max)

    def plain(leaves: list[Array]) -> Measure:
        norm = jnp.sqrt(jnp.where(is_safe, total, 1))
        return Measure(norm, jnp.zeros((), jnp.int32), jnp.ones((), dtype), norm)

    def scaled(leaves: list[Array]) -> Measure:
        # Concatenate to one leaf: the branch is rare, and XLA compiles several loops for each leaf.
        flat = [leaf.astype(dtype).ravel() for leaf in leaves]
        return measure(jnp.concatenate([jnp.zeros(1, dtype), *flat]))

    return jax.lax.cond(is_safe, plain, scaled, leaves)


def is_floating(leaf: Any) -> bool:
    """Return whether a leaf holds floating or complex numbers.

    Integers, booleans, keys and the empty cotangents that JAX gives them are not floating.
    """
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def floating_leaves(tree: Any) -> list[Array]:
    """Return the floating leaves of a tree, in order: those that a gradient flows through."""
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_floating(leaf)]


def replace_floating_leaves(tree: Any, leaves: list[Array]) -> Any:
    """Return the tree with its floating leaves replaced by `leaves`, in the same order."""
    new = iter(leaves)
    return jax.tree.map(lambda leaf: next(new) if is_floating(leaf) else leaf, tree)


def norm_dtype(tree: Any) -> DTypeLike:
    """Return the dtype in which norms are computed: the widest of the leaves, at least float32."""
    dtypes = [
        jnp.finfo(jnp.result_type(leaf)).dtype
        for leaf in jax.tree.leaves(tree)
        if is_floating(leaf)
    ]
    return jnp.result_type(jnp.float32, *dtypes)


def expand(values: Array, leaf: Array) -> Array:
    """Reshape `[*batch]` values so that they broadcast against a leaf `[*batch, ...]`."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim))


def clip_tree(tree: Any, max_norm: ArrayLike, batch_dims: int = 0) -> tuple[Any, Array, Array]:
    """Clip the norm of a tree to `max_norm`, for each of its batch rows separately.

    Args:
      tree: floating leaves `[*batch, ...]`; other leaves are returned unchanged.
      max_norm: the largest norm of a row.
      batch_dims: the number of batch axes; 0 clips the whole tree.

    Returns:
      `(tree, norms before clipping, whether clipped)`, the last two `[*batch]`.
    """
    size, _, down, norm = measure(tree, batch_dims) if batch_dims else fast_measure(tree)
    clipped = jnp.isfinite(norm) & (norm > max_norm)
    factor = jnp.asarray(max_norm, norm.dtype) / jnp.where(clipped, size, 1)

    def clip(leaf: Any) -> Any:
        if not is_floating(leaf):
            return leaf
        wide = leaf.astype(jnp.promote_types(leaf.dtype, norm.dtype))
        new = wide * expand(down, leaf) * expand(factor, leaf)
        return jnp.where(expand(clipped, leaf), new.astype(leaf.dtype), leaf)

    return jax.tree.map(clip, tree), norm, clipped


def check_max_norm(name: str, max_norm: Any) -> None:
    """Raise an error if `max_norm` is concrete and not a positive scalar.

    Numbers of Python, NumPy and JAX are checked; a traced value is not known and passes.

    Raises:
      TypeError: max_norm is not a real number.
      ValueError: max_norm is not a scalar, or not positive.
    """
    if isinstance(max_norm, Tracer):
        return
    number = np.asarray(max_norm)
    if number.dtype.kind not in "iufV":  # V: bfloat16
        raise TypeError(
            f"{name}'s max_norm must be a positive number (inf: never clip); got {max_norm!r}"
        )
    if number.shape != () or not number > 0:
        raise ValueError(
            f"{name}'s max_norm must be a positive number (inf: never clip); got {max_norm}"
        )


def sum_dtype(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype in which numbers are summed: at least float32; JAX's float for integers."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.result_type(float)
    return jnp.promote_types(dtype, jnp.float32)


def zeros_for_sums(tree: Any) -> Any:
    """Return zeros like a tree, in the dtype in which its leaves are summed."""
    return jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf, dtype=sum_dtype(jnp.result_type(leaf))), tree
    )


def cast_like(tree: Any, like: Any) -> Any:
    """Cast every leaf to the dtype of the corresponding leaf of `like`."""
    return jax.tree.map(lambda leaf, to: leaf.astype(jnp.result_type(to)), tree, like)


def select(condition: Bool[Array, "*batch"], chosen: Any, other: Any) -> Any:
    """Select between two trees with leaves `[*batch, ...]`.

    Returns:
      A tree with the entries of `chosen` where `condition` is True, else those of `other`.
    """

    def one(a: Array, b: Array) -> Array:
        rank = max(jnp.ndim(a), jnp.ndim(b))
        return jnp.where(condition.reshape(condition.shape + (1,) * (rank - condition.ndim)), a, b)

    return jax.tree.map(one, chosen, other)


def zero_where_masked(tree: Any, mask: Bool[Array, "*steps"] | None) -> Any:
    """Replace the entries of leaves `[*steps, ...]` by 0 where the mask `[*steps]` is False.

    Padding may hold NaN, and the derivative of a masked step would then be 0 * NaN. None masks
    nothing.
    """
    if mask is None:
        return tree
    keep = jnp.asarray(mask)

    def zeroed(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return jnp.where(expand(keep, leaf), leaf, 0)

    return jax.tree.map(zeroed, tree)
