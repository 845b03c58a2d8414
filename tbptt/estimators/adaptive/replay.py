"""A stream remembered for several windows at once: one list of steps, and for every window the carry that enters it.

    steps      0 ................... R - old ........... R - 1 | new steps
    carries                 the one of `old` enters here

What is remembered for `old = k2 - k1` is exactly the memory that TBPTT(k1, k2) would have, fed from the start of the stream
with the same parameters: so another window can be taken up at any time. old = 0 is the carry that enters the new steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tbptt.estimators.truncated import Past, init_past
from tbptt.types import Batch, Carry, LossFn, Memory, Params
from tbptt.windows import cut, length, split


class Trail(NamedTuple):
    """What is remembered.

    carries: one for each `old`
    steps:   the last max(olds) steps, oldest first; before the stream is that old, its newest `age` steps are real
    age:     scalar, how many steps are real
    """

    carries: tuple[Carry, ...]
    steps: Batch
    age: Int[Array, ""]


def init_trail(carry: Carry, batch: Batch, olds: tuple[int, ...]) -> Trail:
    """Makes the empty trail of a stream that starts from `carry`."""
    past = init_past(carry, batch, max(olds))
    # Copies: a train step may donate its state, and no buffer can be donated twice.
    return Trail(tuple(jax.tree.map(jnp.copy, carry) for _ in olds), past.batch, past.age)


def past_of(trail: Trail, olds: tuple[int, ...], old: int) -> Past:
    """Returns the last `old` steps with the carry that enters them."""
    newest = jax.tree.map(lambda a: a[max(olds) - old :], trail.steps)
    return Past(trail.carries[olds.index(old)], newest, jnp.minimum(trail.age, old))


def memory_of(trail: Trail, olds: tuple[int, ...], k1: int, k2: int) -> Memory:
    """Returns what `truncated_bptt(loss_fn, k1, k2)` calls its memory."""
    past = past_of(trail, olds, max(k2 - k1, 0))
    return past if k2 > k1 else past.carry


def advance(loss_fn: LossFn, k1: int, olds: tuple[int, ...], params: Params, trail: Trail, new: Batch) -> Trail:
    """Remembers T = n k1 new steps: every carry runs forward over the T steps that leave its past, in windows of k1."""
    carries = tuple(_leave(loss_fn, k1, old, params, past_of(trail, olds, old), new) for old in olds)
    steps = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[b.shape[0] :], trail.steps, new)
    return Trail(carries, steps, jnp.minimum(trail.age + length(new), max(olds)))


def _leave(loss_fn: LossFn, k1: int, old: int, params: Params, past: Past, new: Batch) -> Carry:
    """The stream's age is a multiple of k1 until it is `old`: so of the windows that leave, the first ones do not exist,
    one may exist from step `old % k1` on, and all others are whole."""

    def body(state: tuple[Carry, Array], piece: Batch) -> tuple[tuple[Carry, Array], None]:
        carry, age = state
        if old == 0:
            return (run(carry, piece), age), None
        which = (age + k1 > old).astype(jnp.int32) + (age == old)
        carry = jax.lax.switch(which, (lambda c, _: c, partly, run), carry, piece)
        return (carry, jnp.minimum(age + k1, old)), None

    def run(carry: Carry, piece: Batch) -> Carry:
        return loss_fn(params, carry, piece)[1]

    def partly(carry: Carry, piece: Batch) -> Carry:
        return run(carry, split(piece, old % k1)[1])

    T = length(new)
    leaving = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[:T], past.batch, new)
    return jax.lax.scan(body, (past.carry, past.age), cut(leaving, k1))[0][0]
