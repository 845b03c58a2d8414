"""Full back-propagation through time: the reference that every other estimator is measured against."""

import jax

from tbptt.estimators._accumulate import WindowInfo, checked_loss
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import length, means, total_weight


def full_bptt(loss_fn: LossFn) -> Estimator:
    """Differentiates through every step of the batch; only the carry that enters it is a constant.

        g = (1 / W) d/dparams sum_{t < T} w_t L_t,    W = sum_{t < T} w_t

    Memory is the carry, so a stream may be fed piece after piece; each piece is then differentiated whole.

    Args:
      loss_fn: any `LossFn`.

    Returns:
      An `Estimator` whose memory is the carry and whose info is a `WindowInfo` of one window, the batch itself.

    References: Werbos, *Backpropagation through time: what it does and how to do it*, Proc. IEEE 78, 1990.
    """
    loss_fn = checked_loss(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        del params, batch
        return carry

    def estimate(params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        del key
        length(batch)
        (loss_sum, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, memory, batch)
        weight = total_weight(batch)
        loss, grads = means(loss_sum, grads, weight)
        return Gradient(loss, grads, carry, WindowInfo(loss[None], weight[None]))

    return Estimator(init, estimate)
