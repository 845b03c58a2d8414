"""Pad sequences of different lengths to one length, and take the output at each sequence's end."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tbptt.types import Batch
from tbptt.windows import check_window


def pad(
    inputs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray] | None = None,
    *,
    labels: Any = None,
    T: int | None = None,
) -> Batch:
    """Pad sequences to T steps, one per batch row, with mask False at the padding.

        for i in range(n):
            inputs[:T_i, i], mask[:T_i, i] = inputs_i, True
            targets[:T_i, i] = targets_i                    # targets: one per step
            targets[:T_i, i] = labels[i]                    # labels: one per sequence,
            weights[T_i - 1, i] = 1, all other weights 0    #   which count at the last step

    Few lengths T, rounded up to a multiple of k1, keep the number of compiled programs small: sort
    the sequences by length and pad each batch to one of three or four lengths.

    Args:
      inputs: one array `[T_i, ...]` per sequence.
      targets: one array `[T_i, ...]` per sequence; exactly one of targets and labels is given.
      labels: one label per sequence, `[n, ...]`.
      T: static, length of the batch; None: that of the longest sequence.

    Returns:
      A Batch `[T, n, ...]` with mask, and with weights for labels.

    Raises:
      TypeError: T is not an int.
      ValueError: both or none of targets and labels are given, their number or lengths differ from
        those of inputs, a sequence is empty, or longer than T.
    """
    lengths = [len(x) for x in inputs]
    if (targets is None) == (labels is None):
        raise ValueError(
            "exactly one of targets (one per step) and labels (one per sequence) must be given; "
            f"got {'neither' if targets is None else 'both'}"
        )
    if not lengths or 0 in lengths:
        raise ValueError(
            "inputs must hold at least one sequence, and none that is empty; got lengths "
            f"{lengths[:5]}"
        )
    longest = max(lengths)
    T = longest if T is None else check_window("T", T)
    if longest > T:
        raise ValueError(f"T must be at least {longest}, the longest sequence; got T={T}")
    n = len(lengths)
    mask = np.arange(T)[:, None] < np.asarray(lengths)
    if targets is not None:
        if [len(y) for y in targets] != lengths:
            raise ValueError(
                "targets must have one array per sequence, as long as its inputs "
                f"({lengths[:5]}); got lengths {[len(y) for y in targets][:5]}. With one label per "
                "sequence use labels="
            )
        return Batch(_padded(inputs, T), _padded(targets, T), mask=jnp.asarray(mask))
    labels = np.asarray(labels)
    if labels.shape[:1] != (n,):
        raise ValueError(
            f"labels must have one entry per sequence, {n}; got shape {labels.shape}. With one "
            "target per step use targets="
        )
    ends = np.arange(T)[:, None] == np.asarray(lengths) - 1
    steps = jnp.asarray(np.broadcast_to(labels, (T, *labels.shape)))
    weights = jnp.asarray(ends, jnp.float32)
    return Batch(_padded(inputs, T), steps, weights, mask=jnp.asarray(mask))


def last_outputs(outputs: Any, mask: Any) -> Array:
    """Return the outputs at the last step of every sequence that the mask keeps.

        for i in range(n):
            last[i] = outputs[max(t for t in range(T) if mask[t, i]), i]

    `outputs[-1]` is the output at the end of the padding for all but the longest sequence.

    Args:
      outputs: `[T, *batch, ...]`, for example from `tbptt.predict`.
      mask: `[T, *batch]`, that of the batch; a row that is False everywhere gives its step 0.

    Returns:
      `[*batch, ...]`.

    Raises:
      ValueError: the mask is not `[T, *batch]` of the outputs.
    """
    outputs, mask = jnp.asarray(outputs), jnp.asarray(mask)
    if outputs.shape[: mask.ndim] != mask.shape or mask.ndim < 1:
        raise ValueError(
            f"mask must be [T, *batch], the first axes of outputs {outputs.shape}; got shape "
            f"{mask.shape}"
        )
    steps = jnp.arange(mask.shape[0]).reshape(-1, *(1,) * (mask.ndim - 1))
    last = jnp.max(jnp.where(mask, steps, 0), axis=0)
    index = last[None].reshape(1, *last.shape, *(1,) * (outputs.ndim - mask.ndim))
    return jnp.take_along_axis(outputs, index, axis=0)[0]


def _padded(arrays: Sequence[np.ndarray], T: int) -> Array:
    first = np.asarray(arrays[0])
    whole = np.zeros((T, len(arrays), *first.shape[1:]), first.dtype)
    for i, array in enumerate(arrays):
        whole[: len(array), i] = array
    return jnp.asarray(whole)
