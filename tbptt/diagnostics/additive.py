"""A check that a loss function is additive over time, as every estimator requires."""

import jax
import numpy as np

from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import length, split


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
