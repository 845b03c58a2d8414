"""Windows of random length: biased, but not always at the same places."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._accumulate import checked_loss, require_key
from tbptt.estimators.randomized.boundaries import boundary_gradient
from tbptt.estimators.randomized.schedules import LengthSchedule
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_window, cut, length


def random_window_bptt(loss_fn: LossFn, k1: int, schedule: LengthSchedule, *, draws: int = 1) -> Estimator:
    """Cuts time into disjoint windows of random length and differentiates each by itself. BIASED, as all truncation is.

        f_j = 0 where a window ends at seam j, else 1    (`randomized_bptt` would have 1 / (1 - c_j))

        left = blocks()                                                # blocks = max(1, round(schedule.length() / k1))
        for j in range(1, T // k1):                                    # as a plain loop: seam j stands before step j k1
            left -= 1
            f[j] = 0 if left == 0 else 1
            left = blocks() if left == 0 else left

    and then the sweep of `randomized_bptt`, with its cost and memory. A random length spares no dependency for ever, but
    long ones still count too little: its mean is a mixture of TBPTT(k2, k2)'s gradients, not full BPTT's. A window starts
    at the beginning of every call and ends with the call at the latest.

    Args:
      loss_fn: any `LossFn`.
      k1: lengths are multiples of it; static int >= 1; must divide T.
      schedule: static; `AwdLengths`, `LogUniformLengths`, or any `LengthSchedule`.
      draws: static int >= 1; independent cuttings, averaged.

    Returns:
      An `Estimator` whose `estimate` needs a key, consumed. Memory is the carry, info a `BoundaryInfo`; its variance is that
      of the draw and says nothing of the bias.

    Raises:
      TypeError, ValueError: k1 or draws is no static int >= 1; schedule is none; at `estimate`: no key, or T is
        not a multiple of k1.

    References: Merity, Keskar and Socher, *Regularizing and optimizing LSTM language models*, ICLR 2018, section 5.
    """
    k1, draws = check_window("k1", k1), check_window("draws", draws)
    if not isinstance(schedule, LengthSchedule):
        raise TypeError(
            f"schedule must have length(key), like AwdLengths and LogUniformLengths; got {schedule!r}. Probabilities of "
            "truncation belong to randomized_bptt"
        )
    loss_fn = checked_loss(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        del params, batch
        return carry

    def estimate(params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        key = require_key(key, "random_window_bptt", "where to cut")
        blocks = cut(batch, k1)
        seams = length(blocks) - 1
        factors = jax.vmap(lambda one: draw_cuts(schedule, one, seams, k1))(jax.random.split(key, draws))
        return boundary_gradient(loss_fn, params, memory, blocks, factors)

    return Estimator(init, estimate)


def draw_cuts(schedule: LengthSchedule, key: PRNGKey, seams: int, k1: int) -> Float[Array, " seams"]:
    """Draws 0 for every seam where a window ends, 1 for the others. The key is consumed."""

    def blocks(key: PRNGKey) -> Array:
        return jnp.maximum(1, jnp.round(schedule.length(key) / k1)).astype(int)

    def body(left: Array, key: PRNGKey) -> tuple[Array, Array]:
        ends = left == 1
        return jnp.where(ends, blocks(key), left - 1), jnp.where(ends, 0.0, 1.0)

    keys = jax.random.split(key, seams + 1)
    return jax.lax.scan(body, blocks(keys[0]), keys[1:])[1]
