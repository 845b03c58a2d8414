"""Pack sequences of different lengths end to end into streams of equal length."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tbptt.types import Batch
from tbptt.windows import check_window


def pack(inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray], n: int, T: int) -> Batch:
    """Pack sequences into n streams, each at the end of the shortest stream so far.

        for i in range(len(inputs)):
            stream = the one with the smallest length
            inputs, targets -> that stream's steps length .. length + len(inputs[i]) - 1
            resets = True at the first of them, mask = True at all of them
        the rest of every stream: zeros, mask = False

    A carry therefore stays within one sequence, however the streams are cut into windows. The
    longest stream has at most (all steps) / n + (longest sequence) steps, so a T of that length
    suffices for any order.

    Args:
        inputs, targets: one array `[T_i, ...]` per sequence.
        n: static, number of streams, the batch size.
        T: static, length of every stream.

    Returns:
        A Batch `[T, n, ...]` with resets and mask.

    Raises:
        TypeError: n or T is not an int.
        ValueError: there is no sequence, the lengths of inputs and targets differ, a sequence
            is empty, or a stream is longer than T.
    """
    n, T = check_window("n", n), check_window("T", T)
    lengths, target_lengths = [len(x) for x in inputs], [len(y) for y in targets]
    if not lengths or lengths != target_lengths or 0 in lengths:
        raise ValueError(
            "inputs and targets must be sequences of equal lengths, at least one and none empty; "
            f"got {len(lengths)} of lengths {lengths[:5]} and {len(target_lengths)} of lengths "
            f"{target_lengths[:5]}"
        )
    filled, places = np.zeros(n, int), []
    for length in lengths:
        stream = int(np.argmin(filled))
        places.append((stream, int(filled[stream])))
        filled[stream] += length
    if filled.max() > T:
        bound = sum(lengths) // n + max(lengths)
        raise ValueError(
            f"the longest of {n} streams has {filled.max()} steps, more than T={T}; T={bound} is "
            "enough for any order"
        )
    xs = np.zeros((T, n, *inputs[0].shape[1:]), inputs[0].dtype)
    ys = np.zeros((T, n, *targets[0].shape[1:]), targets[0].dtype)
    resets, mask = np.zeros((T, n), bool), np.zeros((T, n), bool)
    for x, y, (stream, start) in zip(inputs, targets, places, strict=True):
        steps = slice(start, start + len(x))
        xs[steps, stream], ys[steps, stream], mask[steps, stream] = x, y, True
        resets[start, stream] = True
    return Batch(jnp.asarray(xs), jnp.asarray(ys), None, jnp.asarray(resets), jnp.asarray(mask))
