"""A global norm that neither overflows nor underflows, for whoever measures gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int


class Measure(NamedTuple):
    """The norm of each batch element's part of a tree, as `size 2^exponent` (which may be too large for the dtype).

    size:     the norm of the tree times down; inf or NaN exactly where an entry is
    exponent: which power of two the largest entry is about; 0 where there is none, or an entry is not finite
    down:     2^-exponent
    norm:     size / down, at most the largest finite number; inf or NaN exactly where an entry is inf or NaN
    """

    size: Float[Array, "*batch"]
    exponent: Int[Array, "*batch"]
    down: Float[Array, "*batch"]
    norm: Float[Array, "*batch"]


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
    return usual_measure(tree).norm


def measure(tree: Any, batch_dims: int = 0) -> Measure:
    """Measures the norm over all but the first `batch_dims` axes of all floating leaves together."""
    dtype = norm_dtype(tree)
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
    exponent = jnp.where(usable, jnp.clip(exponent, lowest, -lowest), 0)
    down, up = jnp.ldexp(jnp.ones((), dtype), -exponent), jnp.ldexp(jnp.ones((), dtype), exponent)
    total = jnp.zeros((), dtype)
    for leaf, over in zip(wide, axes, strict=True):
        # The maximum changes nothing, but without it XLA makes leaf^2 down^2 of a leaf that is a constant: inf 0.
        scaled = jnp.maximum(leaf * expand(down, leaf), 0)
        total = total + jnp.sum(jnp.square(scaled), axis=over)
    size = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    norm = jnp.where(jnp.isfinite(size), jnp.minimum(size * up, jnp.finfo(dtype).max), size)
    return Measure(size, exponent, down, norm)


def usual_measure(tree: Any) -> Measure:
    """Measure the norm of a tree as `measure` does; exponent is 0 and down is 1 wherever plain squares are safe.

    On a CPU the plain sum of squares, which the optimizer's clipping computes anyway, decides by a branch. On an accelerator
    a branch waits for the host, and a second pass over the leaves costs less.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    leaves = [jnp.abs(leaf) if jnp.iscomplexobj(leaf) else leaf for leaf in leaves]
    return jax.lax.platform_dependent(leaves, cpu=_usual_measure, default=measure)


@jax.jit  # outside of jit a branch would be compiled again at every call
def _usual_measure(leaves: list[Array]) -> Measure:
    dtype = norm_dtype(leaves)
    total = sum((jnp.sum(jnp.square(leaf.astype(dtype))) for leaf in leaves), jnp.zeros((), dtype))
    # What squares may have lost by underflow is less than total's rounding, and no sum overflowed. NaN is not usual.
    limits = jnp.finfo(dtype)
    least = sum(leaf.size for leaf in leaves) * float(limits.tiny) / float(limits.eps)
    usual = (total > least) & (total <= limits.max)

    def plain(leaves: list[Array]) -> Measure:
        norm = jnp.sqrt(jnp.where(usual, total, 1))
        return Measure(norm, jnp.zeros((), jnp.int32), jnp.ones((), dtype), norm)

    def scaled(leaves: list[Array]) -> Measure:
        # As one leaf: XLA compiles, nearly always for nothing, a handful of loops for every leaf.
        return measure(jnp.concatenate([jnp.zeros(1, dtype), *(leaf.astype(dtype).ravel() for leaf in leaves)]))

    return jax.lax.cond(usual, plain, scaled, leaves)


def is_floating(leaf: Any) -> bool:
    """Says whether a leaf counts: integers, and the empty cotangents that JAX gives them, do not."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def norm_dtype(tree: Any) -> DTypeLike:
    """At least float32, and the widest of the leaves."""
    dtypes = [jnp.finfo(jnp.result_type(leaf)).dtype for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    return jnp.result_type(jnp.float32, *dtypes)


def expand(values: Array, leaf: Array) -> Array:
    """Gives `[*batch]` values the rank of a leaf `[*batch, ...]`."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim))


def clip_tree(tree: Any, max_norm: ArrayLike, batch_dims: int = 0) -> tuple[Any, Array, Array]:
    """Clips each batch element's part of a tree; returns (tree, norms before, whether clipped), the last two `[*batch]`."""
    size, _, down, norm = measure(tree, batch_dims) if batch_dims else usual_measure(tree)
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
    """Raises a ValueError if max_norm is a concrete number (of Python, NumPy or JAX) that is not a positive scalar."""
    if isinstance(max_norm, Tracer):
        return  # its value is not known while tracing
    number = np.asarray(max_norm)
    if number.dtype.kind not in "iufV":  # V: bfloat16
        raise TypeError(f"{name}'s max_norm must be a positive number (inf: never clip); got {max_norm!r}")
    if number.shape != () or not number > 0:
        raise ValueError(f"{name}'s max_norm must be a positive number (inf: never clip); got {max_norm}")


def select(condition: Bool[Array, "*batch"], chosen: Any, other: Any) -> Any:
    """Select between two trees with leaves `[*batch, ...]`: `chosen` where `condition` is True, else `other`."""

    def one(a: Array, b: Array) -> Array:
        rank = max(jnp.ndim(a), jnp.ndim(b))
        return jnp.where(condition.reshape(condition.shape + (1,) * (rank - condition.ndim)), a, b)

    return jax.tree.map(one, chosen, other)


def zero_where_masked(xs: Array, mask: Bool[Array, "T *batch"] | None) -> Array:
    """Replace what stands at masked steps by 0: NaN padding would reach the weight gradient as 0 * NaN."""
    return xs if mask is None else jnp.where(expand(jnp.asarray(mask), xs), xs, 0)
