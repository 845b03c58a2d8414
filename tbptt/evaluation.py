"""The mean loss on held-out data, and a check that a loss function is additive over time."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float

from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import divisor, length, mean, split, total_weight

CHECKED_STEPS = 64  # of the first evaluation


def make_evaluate(
    loss_fn: LossFn, carry: Carry, batch: Batch, *, check: bool = True
) -> Callable[[Params], Float[Array, ""]]:
    """Return the function of params that computes the mean loss over a batch, compiled once.

        loss_sum, _ = loss_fn(params, carry, batch)
        evaluate(params) = loss_sum / W,    W = the total weight of the batch

    Args:
      loss_fn: static; any `LossFn`, for example that of the estimator.
      carry: the carry that enters the first step.
      batch: held-out data, `[T, *batch, ...]`.
      check: at the first call, raise a ValueError if the loss function is not additive over time,
        see `tbptt.diagnostics.check_additive`; the first 64 steps are used.

    Returns:
      `evaluate(params) -> mean loss`, in the unit of the loss; NaN if signed weights cancel.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, tbptt
      >>> cell, readout = tbptt.GRU(2, 8), nn.Dense(1)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
      >>> valid = tbptt.Batch(jnp.ones((50, 1, 2)), jnp.zeros((50, 1, 1)))
      >>> evaluate = tbptt.make_evaluate(loss_fn, cell.initial_carry((1,)), valid)
      >>> evaluate(params).shape
      ()
    """
    checked = not check or length(batch) < 2

    @jax.jit
    def compute(params: Params, carry: Carry, batch: Batch) -> Float[Array, ""]:
        loss_sum, _ = loss_fn(params, carry, batch)
        return mean(loss_sum, divisor(total_weight(batch), batch))

    def evaluate(params: Params) -> Float[Array, ""]:
        nonlocal checked
        if not checked:
            head, *_ = split(batch, min(length(batch), CHECKED_STEPS))
            check_additive(loss_fn, params, carry, head)
            checked = True
        return compute(params, carry, batch)

    return evaluate


def check_additive(
    loss_fn: LossFn, params: Params, carry: Carry, batch: Batch, *, rtol: float = 1e-3
) -> None:
    """Raise a ValueError unless a loss function is additive over time.

        whole, end = loss_fn(params, carry, batch)
        first, middle = loss_fn(params, carry, batch[: T // 2])
        second, other_end = loss_fn(params, middle, batch[T // 2 :])
        whole == first + second,    end == other_end          # within rtol

    Estimators split time and add the losses of the segments. A ratio of sums, a loss normalised by
    T, or a layer that reads the sequence backwards gives another number for each window, without an
    error. Call it once before training, on one batch, outside of jit.

    Args:
      loss_fn: any `LossFn`; static.
      params: its parameters.
      carry: the carry that enters the batch.
      batch: `[T, *batch, ...]` with T >= 2.
      rtol: largest relative difference that counts as rounding.

    Raises:
      ValueError: T < 2, or the loss or the carry of two segments differs from that of the whole.
    """
    T = length(batch)
    if T < 2:
        raise ValueError(f"batch must have T >= 2 steps, to be split in two; got T={T}")

    @jax.jit
    def both(params: Params, carry: Carry, batch: Batch):
        head, tail = split(batch, T // 2)
        first, middle = loss_fn(params, carry, head)
        second, end = loss_fn(params, middle, tail)
        return loss_fn(params, carry, batch), (first + second, end)

    (whole, end), (parts, other_end) = both(params, carry, batch)
    if not _close(whole, parts, rtol):
        raise ValueError(
            f"loss_fn is not additive over time: {float(whole):.6g} over T={T} steps, "
            f"{float(parts):.6g} over its two halves, one after the other. Return the weighted SUM "
            "of the losses of the steps, each from the steps before it"
        )
    leaves = jax.tree_util.tree_leaves_with_path(end)
    for (path, a), b in zip(leaves, jax.tree.leaves(other_end), strict=True):
        if not _close(a, b, rtol):
            raise ValueError(
                f"loss_fn is not additive over time: carry{jax.tree_util.keystr(path)} after two "
                f"halves differs from that after all T={T} steps"
            )


def _close(a: jax.Array, b: jax.Array, rtol: float) -> bool:
    scale = float(np.max(np.abs(np.asarray(a, np.float64)), initial=0))
    return bool(np.allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=rtol * scale))
