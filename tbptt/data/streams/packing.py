"""Sequences of different lengths, end to end in lanes of equal length."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tbptt.types import Batch
from tbptt.windows import check_window


def pack(inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray], n: int, T: int) -> Batch:
    """Packs sequences into n lanes: each goes, in the order given, to the end of the lane that is shortest so far.

        for i in range(len(inputs)):
            lane = the one with the smallest length
            inputs, targets -> that lane's steps length .. length + len(inputs[i]) - 1
            resets = True at the first of them, mask = True at all of them
        the rest of every lane: zeros, mask = False

    So a carry runs through a sequence and stops at its end, whatever windows the lanes are then cut into. The longest lane
    is at most (all steps) / n + (the longest sequence) long: T of that length always has room, for any order.

    Args:
        inputs, targets: one array `[T_i, ...]` a sequence.
        n: static, lanes.
        T: static, the length of every lane.

    Returns:
        A Batch `[T, n, ...]` with resets and mask.

    Raises:
        TypeError: n or T is no int.
        ValueError: there is no sequence, lengths of inputs and targets differ, one is empty, or a lane is longer than T.
    """
    n, T = check_window("n", n), check_window("T", T)
    lengths, goals = [len(x) for x in inputs], [len(y) for y in targets]
    if not lengths or lengths != goals or 0 in lengths:
        raise ValueError(
            f"inputs and targets must be sequences of equal lengths, at least one and none empty; got {len(lengths)} of "
            f"lengths {lengths[:5]} and {len(goals)} of lengths {goals[:5]}"
        )
    filled, places = np.zeros(n, int), []
    for length in lengths:
        lane = int(np.argmin(filled))
        places.append((lane, int(filled[lane])))
        filled[lane] += length
    if filled.max() > T:
        bound = sum(lengths) // n + max(lengths)
        raise ValueError(
            f"the longest of {n} lanes has {filled.max()} steps, more than T={T}; T={bound} is enough for any order"
        )
    xs = np.zeros((T, n, *inputs[0].shape[1:]), inputs[0].dtype)
    ys = np.zeros((T, n, *targets[0].shape[1:]), targets[0].dtype)
    resets, mask = np.zeros((T, n), bool), np.zeros((T, n), bool)
    for x, y, (lane, start) in zip(inputs, targets, places, strict=True):
        steps = slice(start, start + len(x))
        xs[steps, lane], ys[steps, lane], mask[steps, lane] = x, y, True
        resets[start, lane] = True
    return Batch(jnp.asarray(xs), jnp.asarray(ys), None, jnp.asarray(resets), jnp.asarray(mask))
