"""Truncated BPTT with windows of random length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._accumulate import checked_loss, require_key
from tbptt.estimators.randomized.boundaries import boundary_gradient
from tbptt.estimators.randomized.schedules import LengthSchedule
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_window, length, split_windows


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
    k1, draws = check_window("k1", k1), check_window("draws", draws)
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
