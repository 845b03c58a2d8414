"""Unbiased random truncation (ARTBP), which rescales the cotangents that are not truncated."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.estimators._accumulate import checked_loss, require_key
from tbptt.estimators.randomized.boundaries import boundary_gradient
from tbptt.estimators.randomized.schedules import TruncationSchedule
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_window, length, split_windows


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
    k1, draws = check_window("k1", k1), check_window("draws", draws)
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


def draw_factors(
    schedule: TruncationSchedule, key: PRNGKey, boundaries: int, k1: int
) -> Float[Array, " boundaries"]:
    """Draw the factor of every boundary, 0 or 1 / (1 - c), forward in time. The key is consumed."""

    def body(since: Array, uniform: Array) -> tuple[Array, Array]:
        c = jnp.asarray(schedule.probability(since, k1), uniform.dtype)
        truncates = uniform < c
        return jnp.where(truncates, 0, since) + k1, jnp.where(truncates, 0, 1 / (1 - c))

    return jax.lax.scan(body, jnp.asarray(k1), jax.random.uniform(key, (boundaries,)))[1]


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
