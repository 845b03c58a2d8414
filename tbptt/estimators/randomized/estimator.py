"""Estimators that truncate at random boundaries: without bias (ARTBP), or in random windows.

    boundary      0         1         2        ...       n-1        n
    block         |----0----|----1----|--- ...  ---|----n-1----|
    factor                  f_1       f_2      ...       f_{n-1}

The carry that enters block 0 is a constant. f_j multiplies the cotangent that is back-propagated
from block j to block j - 1; a factor of 0 truncates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.estimators._common import Floating, checked_loss, require_key, segment_vjp
from tbptt.estimators.randomized.schedules import LengthSchedule, TruncationSchedule
from tbptt.numerics import cast_like, expand, floating_leaves, measure, sum_dtype, zeros_for_sums
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_positive_int, length, mean, means, split_windows, total_weight


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


def randomized_bptt(
    loss_fn: LossFn, k1: int, schedule: TruncationSchedule, *, draws: int = 1
) -> Estimator:
    """Estimate the gradient of full BPTT without bias, by truncation at random boundaries.

        cotangent at boundary j:  multiplied by f_j = 0 with probability c_j, else 1 / (1 - c_j)

        since = k1                                                  # the draw, as a plain loop
        for j in range(1, T // k1):                                 # boundary j is before step j k1
            c = schedule.probability(since, k1)
            f[j] = 0 if uniform() < c else 1 / (1 - c)
            since = k1 if f[j] == 0 else since + k1
        d_carry = 0                                                 # the gradient; f[T // k1] = 0
        for j in reversed(range(T // k1)):
            vjp = vjp(loss_fn at boundary j, batch[j k1 : (j + 1) k1])
            d_params, d_carry = vjp(1, f[j + 1] * d_carry)
            g += d_params / W

    E[g] is the gradient of full BPTT over the same call. A loss reaches a step through the
    boundaries i .. j between them, with weight f_i ... f_j. The draw runs forward in time, so c_j
    is a function of f_1 .. f_{j-1}, and E[f_j | f_1 .. f_{j-1}] = 1. Taking expectations from the
    last boundary to the first, the product has mean 1 too, for any dependence of c on the past. (A
    draw backward in time is unbiased as well.)

    All batch rows share the boundaries. One forward pass stores a carry at each of T / k1
    boundaries; blocks are differentiated one at a time. So the memory is T / k1 carries and the
    residuals of one block. Several draws share the forward pass; each needs a backward pass.

    The estimator is exact for any additive `LossFn` whose backward pass is linear and supports
    vmap. Clipping inside of it (`ClippedCell`) is not linear and biases the mean. Each call is
    independent: the carry that enters it is constant, as for full BPTT, and `since` starts anew.

    Args (all static):
      loss_fn: any `LossFn`.
      k1: steps between boundaries; int >= 1; must divide T. 1 = a boundary before every step.
      schedule: `ConstantRate`, `HeavyTail`, or any `TruncationSchedule`.
      draws: int >= 1, the number of independent draws to average; it divides the variance.

    Returns:
      An `Estimator` whose `estimate` needs a key, which is consumed. Its memory is the carry, its
      info a `BoundaryInfo`.

    Raises:
      TypeError, ValueError: k1 or draws is not a static int >= 1; schedule is not a
        `TruncationSchedule`, or has probability 1 after k1 steps; at `estimate`: there is no key, T
        is not a multiple of k1, or the schedule has probability 1 after some other number of steps,
        or 0 at every boundary (use full_bptt).

    References: Tallec and Ollivier, *Unbiasing truncated backpropagation through time*,
    arXiv:1705.08209.
    """
    k1, draws = check_positive_int("k1", k1), check_positive_int("draws", draws)
    if not isinstance(schedule, TruncationSchedule):
        raise TypeError(
            "schedule must have a method probability(since, k1), like ConstantRate and HeavyTail; "
            f"got {schedule!r}. Random lengths without probabilities belong to random_window_bptt"
        )
    _check_probability(schedule, k1, k1, float(np.asarray(schedule.probability(k1, k1))))
    loss_fn = checked_loss(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        del params, batch
        return carry

    def estimate(
        params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        key = require_key(key, "randomized_bptt", "random truncations")
        blocks = split_windows(batch, k1)
        boundaries = length(blocks) - 1
        _check_probabilities(schedule, boundaries, k1)
        keys = jax.random.split(key, draws)
        factors = jax.vmap(lambda key: draw_factors(schedule, key, boundaries, k1))(keys)
        return boundary_gradient(loss_fn, params, memory, blocks, factors)

    return Estimator(init, estimate)


def random_window_bptt(
    loss_fn: LossFn, k1: int, schedule: LengthSchedule, *, draws: int = 1
) -> Estimator:
    """Estimate the gradient from disjoint windows of random length. It is BIASED.

        f_j = 0 if a window ends at boundary j, else 1     (1 / (1 - c_j) in `randomized_bptt`)

        left = blocks()                                    # as a plain loop
        for j in range(1, T // k1):                        # boundary j is before step j k1
            left -= 1
            f[j] = 0 if left == 0 else 1
            left = blocks() if left == 0 else left

    with blocks() = max(1, round(schedule.length() / k1)). The rest is as for `randomized_bptt`,
    with its cost and memory. Every dependency is inside of a window at times, but long dependencies
    have too little weight. The mean is a mixture of the gradients of TBPTT(k2, k2), not the
    gradient of full BPTT. A window starts at the beginning of every call and ends with the call at
    the latest.

    Args (all static):
      loss_fn: any `LossFn`.
      k1: lengths are multiples of k1 steps; int >= 1; must divide T.
      schedule: `AwdLengths`, `LogUniformLengths`, or any `LengthSchedule`.
      draws: int >= 1, the number of independent draws to average.

    Returns:
      An `Estimator` whose `estimate` needs a key, which is consumed. Its memory is the carry, its
      info a `BoundaryInfo`, whose variance is that of the draws and does not include the bias.

    Raises:
      TypeError, ValueError: k1 or draws is not a static int >= 1; schedule is not a
        `LengthSchedule`; at `estimate`: there is no key, or T is not a multiple of k1.

    References: Merity, Keskar and Socher, *Regularizing and optimizing LSTM language models*, ICLR
    2018, section 5.
    """
    k1, draws = check_positive_int("k1", k1), check_positive_int("draws", draws)
    if not isinstance(schedule, LengthSchedule):
        raise TypeError(
            "schedule must have a method length(key), like AwdLengths and LogUniformLengths; got "
            f"{schedule!r}. Probabilities of truncation belong to randomized_bptt"
        )
    loss_fn = checked_loss(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        del params, batch
        return carry

    def estimate(
        params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        key = require_key(key, "random_window_bptt", "random window lengths")
        blocks = split_windows(batch, k1)
        boundaries = length(blocks) - 1
        keys = jax.random.split(key, draws)
        factors = jax.vmap(lambda key: draw_window_factors(schedule, key, boundaries, k1))(keys)
        return boundary_gradient(loss_fn, params, memory, blocks, factors)

    return Estimator(init, estimate)


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


def draw_factors(
    schedule: TruncationSchedule, key: PRNGKey, boundaries: int, k1: int
) -> Float[Array, " boundaries"]:
    """Draw the factor of every boundary, 0 or 1 / (1 - c), forward in time. The key is consumed."""

    def body(since: Array, uniform: Array) -> tuple[Array, Array]:
        c = jnp.asarray(schedule.probability(since, k1), uniform.dtype)
        truncates = uniform < c
        return jnp.where(truncates, 0, since) + k1, jnp.where(truncates, 0, 1 / (1 - c))

    return jax.lax.scan(body, jnp.asarray(k1), jax.random.uniform(key, (boundaries,)))[1]


def draw_window_factors(
    schedule: LengthSchedule, key: PRNGKey, boundaries: int, k1: int
) -> Float[Array, " boundaries"]:
    """Draw factors: 0 at the ends of random windows, 1 elsewhere. The key is consumed."""

    def blocks(key: PRNGKey) -> Array:
        return jnp.maximum(1, jnp.round(schedule.length(key) / k1)).astype(int)

    def body(left: Array, key: PRNGKey) -> tuple[Array, Array]:
        ends = left == 1
        return jnp.where(ends, blocks(key), left - 1), jnp.where(ends, 0.0, 1.0)

    keys = jax.random.split(key, boundaries + 1)
    return jax.lax.scan(body, blocks(keys[0]), keys[1:])[1]


def _check_probabilities(schedule: TruncationSchedule, boundaries: int, k1: int) -> None:
    """Check every probability that a call can use; they are static, so also inside jit."""
    if boundaries == 0:
        return
    since = k1 * (1 + np.arange(boundaries))
    with jax.ensure_compile_time_eval():
        probability = jax.vmap(lambda s: jnp.asarray(schedule.probability(s, k1), float))
        found = np.asarray(probability(jnp.asarray(since)))
    wrong = np.flatnonzero(~((found >= 0) & (found < 1)))
    if wrong.size:
        _check_probability(schedule, k1, int(since[wrong[0]]), float(found[wrong[0]]))
    if not found.any():
        raise ValueError(
            f"{schedule} truncates with probability 0 at all {boundaries} boundaries of a call: "
            "use full_bptt(loss_fn)"
        )


def _check_probability(schedule: TruncationSchedule, k1: int, since: int, c: float) -> None:
    if not 0 <= c < 1:
        raise ValueError(
            "schedule must truncate with a probability of at least 0 and below 1, so that 1 / (1 - "
            f"c) is finite; {schedule} gives {c} at {since} steps since the last truncation, "
            f"k1 = {k1}. A mean length must be above k1"
        )


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
