"""Full back-propagation through time, the exact gradient of a batch."""

import jax

from tbptt.estimators._common import WindowInfo, checked_loss
from tbptt.numerics import sum_dtype
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import length, means, total_weight


def full_bptt(loss_fn: LossFn) -> Estimator:
    """Compute the gradient by back-propagation through every step of the batch.

        g = (1 / W) d/dparams sum_{t < T} w_t L_t,    W = sum_{t < T} w_t

    Only the carry that enters the batch is held constant. The memory is the carry, so a stream may
    be fed as a sequence of batches; each batch is then differentiated as a whole.

    Args:
      loss_fn: static; any `LossFn`.

    Returns:
      An `Estimator`. Its memory is the carry `[*batch, ...]`. Its info is a `WindowInfo` of one
      window, the batch itself, with fields of shape `[1]`.

    Raises:
      TypeError, ValueError: at `estimate`: the leaves of the batch differ in T, or loss_fn does not
        return a floating scalar and a carry like the one that it takes.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, tbptt
      >>> cell, readout = tbptt.LSTM(2, 8), nn.Dense(1)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> batch = tbptt.Batch(jnp.ones((20, 4, 2)), jnp.zeros((20, 4, 1)))
      >>> estimator = tbptt.full_bptt(tbptt.sequence_loss(cell, readout, tbptt.squared_error))
      >>> memory = estimator.init(params, cell.initial_carry((4,)), batch)
      >>> gradient = estimator.estimate(params, memory, batch)
      >>> gradient.loss.shape, gradient.grads.cell.w_h.shape
      ((), (8, 32))

    References: Werbos, *Backpropagation through time: what it does and how to do it*, Proc. IEEE
    78, 1990.
    """
    loss_fn = checked_loss(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        del params, batch
        return carry

    def estimate(
        params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        del key
        length(batch)  # raises an error if the leaves differ in T
        (loss_sum, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, memory, batch)
        weight = total_weight(batch)
        loss, grads = means(loss_sum.astype(sum_dtype(loss_sum.dtype)), grads, weight, batch)
        return Gradient(loss, grads, carry, WindowInfo(loss[None], weight[None]))

    return Estimator(init, estimate)
