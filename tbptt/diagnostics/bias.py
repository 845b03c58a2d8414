"""How far one gradient estimator is from another: size, direction, signs, and scatter over the pieces of a stream."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.numerics import measure
from tbptt.types import Batch, Carry, Estimator, Params, PRNGKey
from tbptt.windows import cut, total_weight


class GradientError(NamedTuple):
    """How one gradient g differs from a reference r, all leaves as one vector; scalars (`[n]` for n pieces).

    relative_error: ||g - r|| / ||r||; 0 if both are 0, inf if only r is
    cosine:         <g, r> / (||g|| ||r||); NaN if either is 0, which has no direction
    sign_agreement: share of entries with sign g = sign r (0 has a sign of its own)
    """

    relative_error: Float[Array, "*n"]
    cosine: Float[Array, "*n"]
    sign_agreement: Float[Array, "*n"]


class EstimatorBias(NamedTuple):
    """What `estimator_bias` measures.

    bias:     the weighted mean g of the pieces' gradients against the reference r
    pieces:   every piece's own gradient against r, `[n]` each: what one update on that piece would see
    variance: scalar, sum_j w_j ||g_j - g||^2 / sum_j w_j over the n pieces; a square, inf or 0 beyond the dtype's range
    grads, reference: g and r themselves
    """

    bias: GradientError
    pieces: GradientError
    variance: Float[Array, ""]
    grads: Params
    reference: Params


def compare_gradients(reference: Params, other: Params) -> GradientError:
    """Compares two gradients of the same parameters. Works inside jit, at any size of the two, at least in float32.

    Raises:
      ValueError: the two differ in structure or shapes, or have no leaf.
    """
    if jax.tree.structure(reference) != jax.tree.structure(other):
        raise ValueError(
            f"both gradients must be of one structure; reference is {jax.tree.structure(reference)}, other is "
            f"{jax.tree.structure(other)}"
        )
    pairs = list(zip(jax.tree_util.tree_leaves_with_path(reference), jax.tree.leaves(other), strict=True))
    for (path, a), b in pairs:
        if jnp.shape(a) != jnp.shape(b):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"reference{name} has shape {jnp.shape(a)}, but other{name} has {jnp.shape(b)}")
    if not pairs:
        raise ValueError("compare_gradients needs at least one leaf; got two empty trees")
    r, g = _vector(reference), _vector(other)
    own, its = measure(r), measure(g)
    # The larger of the two brought to about 1 by a power of two: neither their difference nor a norm can overflow.
    down = jnp.minimum(own.down, its.down)
    apart = measure(g * down - r * down)
    ratio = jnp.ldexp(apart.size / own.size, apart.exponent - own.exponent - jnp.frexp(down)[1] + 1)
    return GradientError(
        relative_error=jnp.where(apart.size == 0, 0, ratio),
        cosine=jnp.sum((r * own.down / own.size) * (g * its.down / its.size)),
        sign_agreement=jnp.mean(jnp.sign(r) == jnp.sign(g), dtype=r.dtype),
    )


def estimator_bias(
    estimator: Estimator,
    reference: Estimator,
    params: Params,
    carry: Carry,
    batch: Batch,
    *,
    piece: int,
    key: PRNGKey | None = None,
) -> EstimatorBias:
    """Runs two estimators over the same data at fixed parameters and compares their gradients. Works inside jit.

        r = reference.estimate(whole batch).grads
        for j, window in enumerate(cut(batch, piece)): g_j, memory = estimator.estimate(params, memory, window)
        g = sum_j w_j g_j / sum_j w_j,    w_j = total weight of piece j

    The reference sees the batch in one call, so that nothing is cut; the estimator is fed it as a stream, its memory
    handed on. Costs one pass of each.

        full_bptt as the reference gives a truncation's bias: for h' = a h + w x in its late steps 1 - g / r = a^k2.

    Args:
      estimator, reference: static; for example `truncated_bptt(loss_fn, k1, k2)` and `full_bptt(loss_fn)`.
      params, carry: at which to compare; the carry enters the first step.
      batch: `[T, *batch, ...]`.
      piece: steps fed at a time; static int that divides T (and is a multiple of the estimator's k1).
      key: for estimators that draw; consumed.

    Raises:
      ValueError: piece does not divide T.
    """
    windows = cut(batch, piece, name="piece")
    n = jax.tree.leaves(windows)[0].shape[0]
    own, keys = (None, None) if key is None else (lambda ks: (ks[0], ks[1:]))(jax.random.split(key, n + 1))
    r = reference.estimate(params, reference.init(params, carry, batch), batch, own).grads
    first = jax.tree.map(lambda leaf: leaf[0], windows)

    def body(state: Any, window_and_key: Any) -> tuple[Any, GradientError]:  # Welford's recurrence: no g_j is kept
        memory, mean, weight, squares = state
        window, use = window_and_key
        gradient = estimator.estimate(params, memory, window, use)
        w = total_weight(window).astype(weight.dtype)
        weight = weight + w
        share = jnp.where(weight == 0, 0, w / jnp.where(weight == 0, 1, weight))
        away = jax.tree.map(jnp.subtract, gradient.grads, mean)
        mean = jax.tree.map(lambda m, d: m + share.astype(d.dtype) * d, mean, away)
        squares = squares + w * (1 - share) * jnp.sum(_vector(away) ** 2)
        return (gradient.memory, mean, weight, squares), compare_gradients(r, gradient.grads)

    zero = jnp.zeros((), _vector(r).dtype)
    start = (estimator.init(params, carry, first), jax.tree.map(jnp.zeros_like, r), zero, zero)
    (_, g, weight, squares), pieces = jax.lax.scan(body, start, (windows, keys))
    variance = jnp.where(weight == 0, 0, squares / jnp.where(weight == 0, 1, weight))
    return EstimatorBias(compare_gradients(r, g), pieces, variance, g, r)


def _vector(tree: Params) -> Float[Array, " n"]:
    leaves = [jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in leaves])
