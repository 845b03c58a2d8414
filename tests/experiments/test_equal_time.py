"""Runs in turns for equal seconds."""

import math

import jax.numpy as jnp
import pytest

from experiments.support.common import equal_time
from experiments.support.common.equal_time import Runner, run_in_turns


def test_runners_take_turns_until_their_seconds_are_used(monkeypatch):
    now, order, rates = [0.0], [], []
    monkeypatch.setattr(equal_time, "clock", lambda: now[0])

    def runner(name: str, cost: float) -> Runner:
        def advance(state, rate, turn):
            order.append(name)
            rates.append((name, float(rate), int(turn)))
            now[0] += cost
            return state + 1, jnp.asarray([1.0, 3.0])

        return Runner(name, 0, advance, 7)

    runners = [runner("slow", 2.0), runner("quick", 1.0)]
    slow, quick = run_in_turns(runners, 4.0, [1.0, 0.1], lambda *report: None)
    assert "".join(name[0] for name in order) == "sqsqqq"
    assert (slow.updates, quick.updates, slow.seconds, quick.seconds) == (14, 28, 4.0, 4.0)
    assert slow.state == 2 and slow.curve == [(2.0, 2.0), (4.0, 2.0)]
    # Half a cosine of its time.
    assert [r for n, r, _ in rates if n == "slow"] == pytest.approx([1.0, 0.5])
    assert [r for n, r, _ in rates if n == "quick"] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    )
    assert [t for n, _, t in rates if n == "quick"] == [0, 1, 2, 3]


def test_the_keep_function_of_a_runner_is_not_timed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(equal_time, "clock", lambda: now[0])

    def advance(state, rate, turn):
        now[0] += 1.0
        return state + 1, jnp.asarray(0.0)

    def keep(kept, state):
        now[0] += 100.0
        return [*(kept or []), state]

    runners = [Runner("with", 0, advance, 1, keep), Runner("without", 0, advance, 1)]
    with_keep, without = run_in_turns(runners, 3.0, [1.0, 1.0], lambda *report: None)
    assert (
        with_keep.kept == [1, 2, 3]
        and with_keep.seconds == 3.0
        and without.kept is None
        and without.updates == 3
    )


def test_a_runner_that_diverges_is_named():
    bad = Runner("TBPTT(3, 3), seed 1", 0, lambda state, rate, turn: (state, jnp.nan), 1)
    with pytest.raises(FloatingPointError, match=r"TBPTT\(3, 3\), seed 1: the loss is nan"):
        run_in_turns([bad], 1.0, [0.1], lambda *report: None)
