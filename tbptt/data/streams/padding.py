"""Pad sequences of different lengths to one length, and take the output at each sequence's end."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tbptt.types import Batch
from tbptt.windows import check_positive_int


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

    Every length T compiles a program of its own; `padded_length` chooses one of a few.

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
    T = longest if T is None else check_positive_int("T", T)
    if longest > T:
        raise ValueError(f"T must be at least {longest}, the longest sequence; got T={T}")
    n = len(lengths)
    mask = np.arange(T)[:, None] < np.asarray(lengths)
    if targets is not None:
        found = [len(y) if np.ndim(y) else None for y in targets]
        if found != lengths:
            raise ValueError(
                "targets must have one array per sequence, as long as its inputs "
                f"({lengths[:5]}); got lengths {found[:5]}. With one label per sequence use labels="
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


def padded_length(steps: int, lengths: Sequence[int] | None = None, *, multiple_of: int = 1) -> int:
    """Choose the length to which a sequence or batch is padded, among a few.

        for batch_of_sequences in ...:
            T = padded_length(max(len(x) for x in inputs))
            gradient = estimate(params, carry, pad(inputs, targets, T=T))

    Padding has mask False: it changes neither loss nor gradient. A jitted function compiles one
    program per length (about a second and some MiB each), so 300 different lengths up to 2,000
    compile 300 programs, and with powers of two at most 12. With powers of two the padding is
    shorter than the longest sequence of the batch; sort the sequences by length to pad the others
    little.

    Args:
      steps: number of steps of the longest sequence, at least 1.
      lengths: the lengths to choose from; None: powers of two.
      multiple_of: the result is rounded up to a multiple of this, for example k1.

    Returns:
      the smallest of the lengths that is at least `steps`.

    Raises:
      TypeError: steps, a length or multiple_of is not an int.
      ValueError: one of them is below 1, or steps is larger than all lengths.
    """
    steps = check_positive_int("steps", steps)
    multiple_of = check_positive_int("multiple_of", multiple_of)
    if lengths is None:
        chosen = 1 << (steps - 1).bit_length()
    else:
        known = sorted(check_positive_int("lengths", length) for length in lengths)
        chosen = next((length for length in known if length >= steps), None)
        if chosen is None:
            raise ValueError(
                f"lengths must have one of at least steps={steps}; got {known}. Add one, or cut "
                "the sequence"
            )
    return -(-chosen // multiple_of) * multiple_of


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
