"""Compare gradient estimators: size, direction, signs, and variance over segments of a stream."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.numerics import measure
from tbptt.types import Batch, Carry, Estimator, Params, PRNGKey
from tbptt.windows import split_windows, total_weight


class GradientError(NamedTuple):
    """Difference of a gradient g from a reference r, all leaves as one vector.

    Fields are scalars, or `[n]` for n segments.

    relative_error: ||g - r|| / ||r||; 0 if both are 0, inf if only r is 0
    cosine:         <g, r> / (||g|| ||r||); NaN if either is 0
    sign_agreement: fraction of entries with sign g = sign r (0 has a sign of its own)
    """

    relative_error: Float[Array, "*n"]
    cosine: Float[Array, "*n"]
    sign_agreement: Float[Array, "*n"]


class EstimatorBias(NamedTuple):
    """Result of `estimator_bias`.

    bias:     the weighted mean g of the segments' gradients, compared with the reference r
    segments: the gradient of every segment compared with r, `[n]`: that of one update each
    variance: scalar, sum_j w_j ||g_j - g||^2 / sum_j w_j over the n segments; inf or 0 beyond
              the dtype's range, as a square
    grads, reference: g and r themselves
    """

    bias: GradientError
    segments: GradientError
    variance: Float[Array, ""]
    grads: Params
    reference: Params


def compare_gradients(reference: Params, other: Params) -> GradientError:
    """Compare two gradients of the same parameters, without overflow, in float32 at least.

    Works inside jit.

    Raises:
      ValueError: the two differ in structure or shapes, or have no leaf.
    """
    if jax.tree.structure(reference) != jax.tree.structure(other):
        raise ValueError(
            "both gradients must have one structure; reference is "
            f"{jax.tree.structure(reference)}, other is {jax.tree.structure(other)}"
        )
    pairs = list(
        zip(jax.tree_util.tree_leaves_with_path(reference), jax.tree.leaves(other), strict=True)
    )
    for (path, a), b in pairs:
        if jnp.shape(a) != jnp.shape(b):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"reference{name} has shape {jnp.shape(a)}, but other{name} has {jnp.shape(b)}"
            )
    if not pairs:
        raise ValueError("compare_gradients needs at least one leaf; got two empty trees")
    r, g = _vector(reference), _vector(other)
    r_norm, g_norm = measure(r), measure(g)
    # Scaled by a power of two so that the larger one is about 1: no difference or norm overflows.
    down = jnp.minimum(r_norm.down, g_norm.down)
    difference = measure(g * down - r * down)
    ratio = jnp.ldexp(
        difference.size / r_norm.size,
        difference.exponent - r_norm.exponent - jnp.frexp(down)[1] + 1,
    )
    return GradientError(
        relative_error=jnp.where(difference.size == 0, 0, ratio),
        cosine=jnp.sum((r * r_norm.down / r_norm.size) * (g * g_norm.down / g_norm.size)),
        sign_agreement=jnp.mean(jnp.sign(r) == jnp.sign(g), dtype=r.dtype),
    )


def estimator_bias(
    estimator: Estimator,
    reference: Estimator,
    params: Params,
    carry: Carry,
    batch: Batch,
    *,
    segment: int,
    key: PRNGKey | None = None,
) -> EstimatorBias:
    """Compare the gradients of two estimators on the same data and parameters.

        r = reference.estimate(whole batch).grads
        for j, window in enumerate(split_windows(batch, segment)):
            g_j, memory = estimator.estimate(params, memory, window)
        g = sum_j w_j g_j / sum_j w_j,    w_j = total weight of segment j

    The reference receives the batch in one call, without truncation. The estimator receives it
    as a stream, and its memory is passed from segment to segment. The cost is one pass of each.
    Works inside jit.

    With full_bptt as the reference this is the bias of truncation: for h' = a h + w x in its
    late steps, 1 - g / r = a^k2.

    Args:
      estimator, reference: static; for example `truncated_bptt(loss_fn, k1, k2)` and
        `full_bptt(loss_fn)`.
      params, carry: at which to compare; the carry enters the first step.
      batch: `[T, *batch, ...]`.
      segment: steps per call of the estimator; static int that divides T (and is a multiple of
        the estimator's k1).
      key: for estimators that draw; consumed.

    Raises:
      ValueError: segment does not divide T.
    """
    windows = split_windows(batch, segment, name="segment")
    n = jax.tree.leaves(windows)[0].shape[0]
    reference_key, keys = None, None
    if key is not None:
        all_keys = jax.random.split(key, n + 1)
        reference_key, keys = all_keys[0], all_keys[1:]
    memory = reference.init(params, carry, batch)
    r = reference.estimate(params, memory, batch, reference_key).grads
    first = jax.tree.map(lambda leaf: leaf[0], windows)

    def body(state: Any, window_and_key: Any) -> tuple[Any, GradientError]:
        # Welford's recurrence, which stores no g_j.
        memory, mean, weight, squares = state
        window, window_key = window_and_key
        gradient = estimator.estimate(params, memory, window, window_key)
        w = total_weight(window).astype(weight.dtype)
        weight = weight + w
        share = jnp.where(weight == 0, 0, w / jnp.where(weight == 0, 1, weight))
        deviation = jax.tree.map(jnp.subtract, gradient.grads, mean)
        mean = jax.tree.map(lambda m, d: m + share.astype(d.dtype) * d, mean, deviation)
        squares = squares + w * (1 - share) * jnp.sum(_vector(deviation) ** 2)
        return (gradient.memory, mean, weight, squares), compare_gradients(r, gradient.grads)

    zero = jnp.zeros((), _vector(r).dtype)
    start = (estimator.init(params, carry, first), jax.tree.map(jnp.zeros_like, r), zero, zero)
    (_, g, weight, squares), segments = jax.lax.scan(body, start, (windows, keys))
    variance = jnp.where(weight == 0, 0, squares / jnp.where(weight == 0, 1, weight))
    return EstimatorBias(compare_gradients(r, g), segments, variance, g, r)


def _vector(tree: Params) -> Float[Array, " n"]:
    leaves = [jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(
        [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in leaves]
    )
