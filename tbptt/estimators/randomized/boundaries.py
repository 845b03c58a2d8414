"""The gradient for given factors at the boundaries between blocks of time.

    boundary      0         1         2        ...       n-1        n
    block         |----0----|----1----|--- ...  ---|----n-1----|
    factor                  f_1       f_2      ...       f_{n-1}

The carry that enters block 0 is a constant. f_j multiplies the cotangent that is back-propagated
from block j to block j - 1; a factor of 0 truncates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._segment_vjp import Floating, segment_vjp
from tbptt.numerics import cast_like, expand, floating_leaves, measure, sum_dtype, zeros_for_sums
from tbptt.types import Batch, Carry, Gradient, LossFn, Params
from tbptt.windows import length, mean, means, total_weight


class BoundaryInfo(NamedTuple):
    """Info of one `estimate` call of n blocks; lengths are in steps, over all draws.

    losses:      `[n]`, the weighted mean loss of each block (0 if its weight is 0)
    weights:     `[n]`, the total weight of each block
    mean_length: scalar, the mean length of the segments between truncations; the ends of the call
      count as truncations
    longest:     scalar, the longest segment
    largest_product: scalar, the largest product of factors that multiplies a signal; 1 if all
      factors are 0 or 1
    variance:    scalar, the estimated variance of grads: the trace of the sample covariance of the
      draws, divided by their number; inf or 0 outside the range of the dtype; None for one draw
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    mean_length: Float[Array, ""]
    longest: Float[Array, ""]
    largest_product: Float[Array, ""]
    variance: Float[Array, ""] | None


def boundary_gradient(
    loss_fn: LossFn,
    params: Params,
    carry: Carry,
    blocks: Batch,
    factors: Float[Array, "draws boundaries"],
) -> Gradient:
    """Average the gradients of several draws of factors.

        for j in range(n):                                           # forward, shared by the draws
            entering[j] = carry
            loss_sum[j], carry = loss_fn(params, carry, blocks[j])
        d_carry = 0
        for j in reversed(range(n)):                         # f = factors of one draw, f[n] = 0
            vjp = vjp(loss_fn at entering[j], blocks[j])
            d_params, d_carry = vjp(1, f[j + 1] * d_carry)
            g += d_params / W

    The draws share the forward pass and the linearization of each block. Memory: n carries and the
    residuals of one block; for each draw a cotangent of the carry and a gradient.

    Args:
      blocks: `[n, k1, *batch, ...]`.
      factors: `[draws, n - 1]`.

    Returns:
      A `Gradient`. Its memory is the carry, its info a `BoundaryInfo`.
    """
    draws = factors.shape[0]

    def forward(carry: Carry, block: Batch) -> tuple[Carry, tuple[Carry, Array, Array]]:
        loss_sum, leaving = loss_fn(params, carry, block)
        loss_sum = loss_sum.astype(sum_dtype(loss_sum.dtype))
        return leaving, (carry, loss_sum, total_weight(block))

    def backward(state: tuple[Floating, Params], now: tuple[Carry, Batch, Array]):
        cotangents, grads = state
        entering, block, factor = now
        d_leaving = [_scaled(factor, leaf) for leaf in cotangents]
        vjp = segment_vjp(loss_fn, params, entering, block)
        # Map over the factor too: a carry may have no floating leaf.
        d_params, cotangents = jax.vmap(lambda _, d: vjp(d))(factor, d_leaving)
        return (cotangents, jax.tree.map(jnp.add, grads, d_params)), None

    leaving, (entering, losses, weights) = jax.lax.scan(forward, carry, blocks)
    last = jnp.zeros_like(factors, shape=(draws, 1))
    leaving_factors = jnp.concatenate([factors, last], axis=1).T
    d_carry = [jnp.zeros((draws, *leaf.shape), leaf.dtype) for leaf in floating_leaves(carry)]
    zeros = zeros_for_sums(
        jax.tree.map(lambda p: jnp.zeros((draws, *jnp.shape(p)), jnp.result_type(p)), params)
    )
    (_, sums), _ = jax.lax.scan(
        backward, (d_carry, zeros), (entering, blocks, leaving_factors), reverse=True
    )
    loss, each = means(jnp.sum(losses), sums, jnp.sum(weights), blocks)
    grads = jax.tree.map(lambda g: jnp.mean(g, axis=0), each)
    lengths = _segment_lengths(factors, length(jax.tree.map(lambda a: a[0], blocks)))
    info = BoundaryInfo(mean(losses, weights), weights, *lengths, _variance(each, grads))
    return Gradient(loss, cast_like(grads, params), leaving, info)


def _scaled(factor: Float[Array, " draws"], leaf: Array) -> Array:
    """Multiply by the factor; a factor of 0 also stops inf and NaN."""
    wide = expand(factor, leaf)
    return jnp.where(wide == 0, 0, leaf * wide).astype(leaf.dtype)


def _segment_lengths(
    factors: Float[Array, "draws boundaries"], k1: int
) -> tuple[Array, Array, Array]:
    """Return (mean length, longest, largest product) of the segments between truncations."""
    draws, boundaries = factors.shape

    def body(
        state: tuple[Array, ...], factor: Float[Array, " draws"]
    ) -> tuple[tuple[Array, ...], None]:
        blocks, product, longest, largest = state
        blocks = jnp.where(factor == 0, 1, blocks + 1)
        product = jnp.where(factor == 0, 1, product * factor)
        return (blocks, product, jnp.maximum(longest, blocks), jnp.maximum(largest, product)), None

    ones = jnp.ones((draws,), factors.dtype)
    (_, _, longest, largest), _ = jax.lax.scan(body, (ones, ones, ones, ones), factors.T)
    number = draws + jnp.sum(factors == 0).astype(factors.dtype)
    return k1 * draws * (boundaries + 1) / number, k1 * jnp.max(longest), jnp.max(largest)


def _variance(each: Params, grads: Params) -> Float[Array, ""] | None:
    draws = jax.tree.leaves(each)[0].shape[0]
    if draws == 1:
        return None
    distance = measure(jax.tree.map(jnp.subtract, each, grads), batch_dims=1)
    return jnp.sum(jnp.square(distance.norm)) / (draws * (draws - 1))
