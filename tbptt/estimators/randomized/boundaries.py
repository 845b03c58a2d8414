"""The sweep of all estimators that cut at random: carries at the seams, then blocks backwards with a factor at each seam.

    seam          0         1         2        ...       n-1        n
    block         |----0----|----1----|--- ...  ---|----n-1----|
    factor        (cut)     f_1       f_2      ...       f_{n-1}

The carry that enters block 0 is a constant. f_j multiplies what is back-propagated from block j into block j - 1; 0 cuts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._segment_vjp import linearized, moving
from tbptt.numerics import expand, measure
from tbptt.types import Batch, Carry, Gradient, LossFn, Params
from tbptt.windows import length, mean, means, total_weight


class BoundaryInfo(NamedTuple):
    """What happened in one `estimate` call of n blocks; lengths in steps, over all draws.

    losses:      `[n]` the weighted mean loss of each block (0 where its weight is 0)
    weights:     `[n]` the total weight of each block
    mean_length: scalar, of the stretches between cuts; those at both ends of the call are cut by the call
    longest:     scalar, the longest stretch
    largest_product: scalar, the largest product of factors that a signal was multiplied by; 1 where factors are 0 or 1
    variance:    scalar, the estimated variance of grads by the draws' scatter: the trace of the sample covariance of the
      draws, divided by their number; a square, inf or 0 beyond the dtype's range. None for a single draw: it has no scatter
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    mean_length: Float[Array, ""]
    longest: Float[Array, ""]
    largest_product: Float[Array, ""]
    variance: Float[Array, ""] | None


def boundary_gradient(
    loss_fn: LossFn, params: Params, carry: Carry, blocks: Batch, factors: Float[Array, "draws seams"]
) -> Gradient:
    """Averages the gradients of several draws of factors; they share the forward pass and each block's linearization.

        for j in range(n): seams[j] = carry; loss_sum[j], carry = loss_fn(params, carry, blocks[j])
        back = 0
        for j in reversed(range(n)):                                 # f = factors of one draw, f[n] = 0
            d_params, back = vjp(loss_fn at seams[j], blocks[j])(1, f[j + 1] * back)
            g += d_params / W

    Args:
      blocks: `[n, k1, *batch, ...]`.
      factors: `[draws, n - 1]`.

    Returns:
      A `Gradient` whose memory is the carry and whose info is a `BoundaryInfo`. Kept at once: n carries and the
      intermediates of one block; and for every draw a cotangent of the carry and a gradient.
    """
    draws = factors.shape[0]

    def forward(carry: Carry, block: Batch) -> tuple[Carry, tuple[Carry, Array, Array]]:
        loss_sum, leaving = loss_fn(params, carry, block)
        return leaving, (carry, loss_sum, total_weight(block))

    def backward(state: tuple[list[Array], Params], now: tuple[Carry, Batch, Array]):
        cotangents, grads = state
        entering, block, factor = now
        incoming = [_times(factor, leaf) for leaf in cotangents]
        back = linearized(loss_fn, params, entering, block)
        # The factor is mapped as well, for carries without a floating leaf.
        d_params, cotangents = jax.vmap(lambda _, d_leaving: back(d_leaving))(factor, incoming)
        return (cotangents, jax.tree.map(jnp.add, grads, d_params)), None

    leaving, (seams, losses, weights) = jax.lax.scan(forward, carry, blocks)
    leaving_factors = jnp.concatenate([factors, jnp.zeros_like(factors, shape=(draws, 1))], axis=1).T
    none = [jnp.zeros((draws, *leaf.shape), leaf.dtype) for leaf in moving(carry)]
    zeros = jax.tree.map(lambda p: jnp.zeros((draws, *jnp.shape(p)), jnp.result_type(p)), params)
    (_, sums), _ = jax.lax.scan(backward, (none, zeros), (seams, blocks, leaving_factors), reverse=True)
    loss, each = means(jnp.sum(losses), sums, jnp.sum(weights))
    grads = jax.tree.map(lambda g: jnp.mean(g, axis=0), each)
    lengths = _stretches(factors, length(jax.tree.map(lambda a: a[0], blocks)))
    info = BoundaryInfo(mean(losses, weights), weights, *lengths, _variance(each, grads))
    return Gradient(loss, grads, leaving, info)


def _times(factor: Float[Array, " draws"], leaf: Array) -> Array:
    """A cut is a cut: also of what is inf or NaN on its other side."""
    wide = expand(factor, leaf)
    return jnp.where(wide == 0, 0, leaf * wide).astype(leaf.dtype)


def _stretches(factors: Float[Array, "draws seams"], k1: int) -> tuple[Array, Array, Array]:
    """(mean length, longest, largest product) of the stretches between cuts."""
    draws, seams = factors.shape

    def body(state: tuple[Array, ...], factor: Float[Array, " draws"]) -> tuple[tuple[Array, ...], None]:
        since, product, longest, largest = state
        since, product = jnp.where(factor == 0, 1, since + 1), jnp.where(factor == 0, 1, product * factor)
        return (since, product, jnp.maximum(longest, since), jnp.maximum(largest, product)), None

    ones = jnp.ones((draws,), factors.dtype)
    (_, _, longest, largest), _ = jax.lax.scan(body, (ones, ones, ones, ones), factors.T)
    number = draws + jnp.sum(factors == 0).astype(factors.dtype)
    return k1 * draws * (seams + 1) / number, k1 * jnp.max(longest), jnp.max(largest)


def _variance(each: Params, grads: Params) -> Float[Array, ""] | None:
    draws = jax.tree.leaves(each)[0].shape[0]
    if draws == 1:
        return None
    apart = measure(jax.tree.map(jnp.subtract, each, grads), batch_dims=1)
    return jnp.sum(jnp.square(apart.norm)) / (draws * (draws - 1))
