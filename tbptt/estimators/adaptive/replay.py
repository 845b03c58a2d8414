"""The stored steps of a stream, shared by several windows, with one entering carry per window.

    steps      0 ................... R - old ........... R - 1 | new steps
    carries                          ^ the carry for `old` enters here

The content for `old = k2 - k1` is exactly the memory of TBPTT(k1, k2), fed from the start of the
stream with the same parameters. So any call can use another window. old = 0 is the carry that
enters the new steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tbptt.estimators.truncated import Past, init_past
from tbptt.types import Batch, Carry, LossFn, Memory, Params
from tbptt.windows import length, split, split_windows, without_masked_values


class Replay(NamedTuple):
    """The stored steps of a stream.

    carries: one for each of `olds`, the carry that enters the step that many steps back
    steps:   `[max(olds), *batch, ...]`, the last steps, oldest first; the newest `age` are valid
    age:     scalar, the number of valid steps
    """

    carries: tuple[Carry, ...]
    steps: Batch
    age: Int[Array, ""]


def init_replay(carry: Carry, batch: Batch, olds: tuple[int, ...]) -> Replay:
    """Return the empty replay memory of a stream that starts from `carry`."""
    past = init_past(carry, batch, max(olds))
    # Copies: a train step donates its state, and no buffer can be donated twice.
    carries = tuple(jax.tree.map(jnp.copy, carry) for _ in olds)
    return Replay(carries, past.batch, past.age)


def past_of(replay: Replay, olds: tuple[int, ...], old: int) -> Past:
    """Return the last `old` steps with the carry that enters them."""
    newest = jax.tree.map(lambda a: a[max(olds) - old :], replay.steps)
    return Past(replay.carries[olds.index(old)], newest, jnp.minimum(replay.age, old))


def memory_of(replay: Replay, olds: tuple[int, ...], k1: int, k2: int) -> Memory:
    """Return the memory of `truncated_bptt(loss_fn, k1, k2)`."""
    past = past_of(replay, olds, max(k2 - k1, 0))
    return past if k2 > k1 else past.carry


def advance(
    loss_fn: LossFn, k1: int, olds: tuple[int, ...], params: Params, replay: Replay, new: Batch
) -> Replay:
    """Store T = n k1 new steps.

    Every carry advances over the T steps that leave its past, in windows of k1 steps.
    """
    new = without_masked_values(new)
    carries = tuple(
        _advance_carry(loss_fn, k1, old, params, past_of(replay, olds, old), new) for old in olds
    )
    steps = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[b.shape[0] :], replay.steps, new)
    return Replay(carries, steps, jnp.minimum(replay.age + length(new), max(olds)))


def _advance_carry(
    loss_fn: LossFn, k1: int, old: int, params: Params, past: Past, new: Batch
) -> Carry:
    """Advance one carry over the steps that leave its past.

    The age of the stream is a multiple of k1 until it is `old`. So the first windows that leave the
    past hold no valid step, one may be valid from step `old % k1` on, and all others are whole.
    """

    def body(state: tuple[Carry, Array], segment: Batch) -> tuple[tuple[Carry, Array], None]:
        carry, age = state
        if old == 0:
            return (run(carry, segment), age), None
        branch = (age + k1 > old).astype(jnp.int32) + (age == old)
        carry = jax.lax.switch(branch, (lambda c, _: c, run_part, run), carry, segment)
        return (carry, jnp.minimum(age + k1, old)), None

    def run(carry: Carry, segment: Batch) -> Carry:
        return loss_fn(params, carry, segment)[1]

    def run_part(carry: Carry, segment: Batch) -> Carry:
        return run(carry, split(segment, old % k1)[1])

    T = length(new)
    leaving = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[:T], past.batch, new)
    return jax.lax.scan(body, (past.carry, past.age), split_windows(leaving, k1))[0][0]
