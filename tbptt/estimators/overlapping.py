"""The window of TBPTT(k1, k2) with k2 > k1: k2 - k1 remembered steps are replayed before the k1 new ones.

    array position   0 ........ k1 ........ k2-k1 ......... k2
                     |  leave   |           |   new steps   |
                     |       remembered     |
    `carry` enters position 0; the next window starts from the carry at position k1.

The remembered steps and the new ones are run by separate calls of the loss function, and the loss of the remembered ones
is thrown away: so nothing is asked of a loss function but that it is additive over time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from tbptt.estimators.sums import WindowFn
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import length, split


class Past(NamedTuple):
    """What overlapping windows remember.

    carry: the carry that enters the oldest remembered step
    batch: the last k2 - k1 steps, oldest first; before the stream is that old, its newest `age` steps are real
    age:   scalar, how many steps are real, at most k2 - k1
    """

    carry: Carry
    batch: Batch
    age: Int[Array, ""]


def init_past(carry: Carry, batch: Batch, steps: int) -> Past:
    """Makes the empty past of a stream that starts from `carry`; `batch` (or its eval_shape) gives the shapes."""
    length(batch)
    empty = jax.tree.map(lambda leaf: jnp.zeros((steps, *np.shape(leaf)[1:]), jnp.result_type(leaf)), batch)
    return Past(carry, empty, jnp.zeros((), jnp.int32))


def overlapping_window(loss_fn: LossFn, k1: int, k2: int) -> WindowFn:
    """Makes the function of one window for k2 > k1."""
    old = k2 - k1

    def window(params: Params, past: Past, new: Batch):
        steps = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), past.batch, new)
        # The cond stands outside the differentiation: inside, both branches' intermediates would be kept.
        loss_sum, grads, carry = jax.lax.cond(past.age == old, whole, young, params, past.carry, steps, past.age)
        age = jnp.minimum(past.age + k1, old)
        return loss_sum, grads, Past(carry, jax.tree.map(lambda a: a[k1:], steps), age)

    def whole(params: Params, carry: Carry, steps: Batch, age: Int[Array, ""]):
        """All k2 steps are real. Cut where the next window starts and where the loss begins to count."""
        del age
        edges = sorted({k1, old})
        starts = [0, *edges]

        def loss(params: Params) -> tuple[Array, Carry]:
            counted, entering, next_start = [], carry, carry
            for start, piece in zip(starts, split(steps, *edges), strict=True):
                if start == k1:
                    next_start = entering
                piece_sum, entering = loss_fn(params, entering, piece)
                if start >= old:
                    counted.append(piece_sum)
            return functools.reduce(jnp.add, counted), next_start

        (loss_sum, next_start), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return loss_sum, grads, next_start

    def young(params: Params, carry: Carry, steps: Batch, age: Int[Array, ""]):
        """The stream is younger than its window. Its age is a multiple of k1, so the remembered steps are cut into pieces
        of k1 that are real or not as a whole, and the carry is held over those that are not."""
        held, first = old // k1, old % k1
        pieces = jax.tree.map(lambda a: a[first:old].reshape(held, k1, *a.shape[1:]), steps)
        is_real = (held - jnp.arange(held)) * k1 <= age
        new = split(steps, old)[1]

        def replay(carry: Carry, piece_and_flag: tuple[Batch, Array], params: Params) -> tuple[Carry, None]:
            piece, flag = piece_and_flag
            return jax.lax.cond(flag, lambda c: loss_fn(params, c, piece)[1], lambda c: c, carry), None

        def loss(params: Params) -> Array:
            entering, _ = jax.lax.scan(lambda c, p: replay(c, p, params), carry, (pieces, is_real))
            return loss_fn(params, entering, new)[0]

        def leave() -> Carry:
            return loss_fn(params, carry, split(steps, first, k1)[1])[1]

        loss_sum, grads = jax.value_and_grad(loss)(params)
        # Only the window that completes the past leaves steps behind: those between position `first` and k1.
        return loss_sum, grads, jax.lax.cond(age + k1 > old, leave, lambda: carry)

    return window
