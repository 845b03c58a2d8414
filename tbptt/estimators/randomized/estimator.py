"""Unbiased truncation at random: what is not cut is made larger by as much as was likely to be cut (ARTBP)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.estimators._accumulate import checked_loss, require_key
from tbptt.estimators.randomized.boundaries import boundary_gradient
from tbptt.estimators.randomized.schedules import TruncationSchedule
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_window, cut, length


def randomized_bptt(loss_fn: LossFn, k1: int, schedule: TruncationSchedule, *, draws: int = 1) -> Estimator:
    """Cuts the gradient at random seams and makes up for it on average: E[g] is full BPTT's gradient of the same call.

        back-propagated through seam j:  0 with probability c_j,  else 1 / (1 - c_j) times what arrived

        since = k1                                                     # as a plain loop: the draw
        for j in range(1, T // k1):                                    # seam j stands before step j k1
            c = schedule.probability(since, k1)
            f[j] = 0 if uniform() < c else 1 / (1 - c)
            since = k1 if f[j] == 0 else since + k1
        back = 0                                                       # and the gradient
        for j in reversed(range(T // k1)):
            d_params, back = vjp(loss_fn at seam j, batch[j k1 : (j + 1) k1])(1, f[j + 1] * back)    # f[T // k1] = 0
            g += d_params / W

    Why it is unbiased: a loss reaches a step through the seams i .. j between them, weighted by f_i ... f_j. The draw runs
    forward in time, so c_j is known once f_1 .. f_{j-1} are, and E[f_j | f_1 .. f_{j-1}] = 1; from the last seam to the
    first, the product's mean is 1 too, however c depends on the past. (A draw backward in time would do as well.)

    Seams are the same for all lanes. One forward pass keeps a carry at each of T / k1 seams; the blocks between are
    taken back one at a time. So memory grows with T / k1 carries and one block's intermediates. Several draws share
    the forward pass; each costs a backward pass. Exact with any additive `LossFn` whose backward pass is linear and can
    be vmapped: clipping inside it (`ClippedCell`) is not linear, and biases the mean. A call is a whole: the carry that
    enters it is constant, as for full BPTT, and the count of steps since the last cut starts there.

    Args:
      loss_fn: any `LossFn`.
      k1: steps between seams; static int >= 1; must divide T. 1 = every step may be cut off.
      schedule: static; `ConstantRate`, `HeavyTail`, or any `TruncationSchedule`.
      draws: static int >= 1; independent ones, averaged: their number divides the variance.

    Returns:
      An `Estimator` whose `estimate` needs a key, consumed. Memory is the carry, info a `BoundaryInfo`.

    Raises:
      TypeError, ValueError: k1 or draws is no static int >= 1; schedule is none, or cuts for certain after k1 steps; at
        `estimate`: no key, T is not a multiple of k1, or schedule cuts for certain after some other number of steps, or
        nowhere (that is full_bptt).

    References: Tallec and Ollivier, *Unbiasing truncated backpropagation through time*, arXiv:1705.08209.
    """
    k1, draws = check_window("k1", k1), check_window("draws", draws)
    if not isinstance(schedule, TruncationSchedule):
        raise TypeError(
            f"schedule must have probability(since, k1), like ConstantRate and HeavyTail; got {schedule!r}. Random lengths "
            "without probabilities belong to random_window_bptt"
        )
    _check_probability(schedule, k1, k1, float(np.asarray(schedule.probability(k1, k1))))
    loss_fn = checked_loss(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        del params, batch
        return carry

    def estimate(params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        key = require_key(key, "randomized_bptt", "where to cut")
        blocks = cut(batch, k1)
        seams = length(blocks) - 1
        _check_probabilities(schedule, seams, k1)
        factors = jax.vmap(lambda one: draw_factors(schedule, one, seams, k1))(jax.random.split(key, draws))
        return boundary_gradient(loss_fn, params, memory, blocks, factors)

    return Estimator(init, estimate)


def draw_factors(schedule: TruncationSchedule, key: PRNGKey, seams: int, k1: int) -> Float[Array, " seams"]:
    """Draws the factor of every seam, 0 or 1 / (1 - c), forward in time. The key is consumed."""

    def body(since: Array, uniform: Array) -> tuple[Array, Array]:
        c = jnp.asarray(schedule.probability(since, k1), uniform.dtype)
        is_cut = uniform < c
        return jnp.where(is_cut, 0, since) + k1, jnp.where(is_cut, 0, 1 / (1 - c))

    return jax.lax.scan(body, jnp.asarray(k1), jax.random.uniform(key, (seams,)))[1]


def _check_probabilities(schedule: TruncationSchedule, seams: int, k1: int) -> None:
    """Checks every probability that a call of so many seams can meet; they are static, so inside jit as well."""
    if seams == 0:
        return
    since = k1 * (1 + np.arange(seams))
    with jax.ensure_compile_time_eval():
        found = np.asarray(jax.vmap(lambda s: jnp.asarray(schedule.probability(s, k1), float))(jnp.asarray(since)))
    wrong = np.flatnonzero(~((found >= 0) & (found < 1)))
    if wrong.size:
        _check_probability(schedule, k1, int(since[wrong[0]]), float(found[wrong[0]]))
    if not found.any():
        raise ValueError(f"{schedule} cuts with probability 0 at all {seams} seams of a call: use full_bptt(loss_fn)")


def _check_probability(schedule: TruncationSchedule, k1: int, since: int, c: float) -> None:
    if not 0 <= c < 1:
        raise ValueError(
            f"schedule must cut with a probability below 1 (and not below 0), or no factor makes up for what is cut; "
            f"{schedule} gives {c} at {since} steps since the last cut, k1 = {k1}. A mean length must be above k1"
        )
