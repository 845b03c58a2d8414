"""Several training runs at equal seconds, in turns, so that whatever else the machine does falls on all of them alike.

On a CPU the seconds are those of the processor, all cores together, not those on the wall: work that other programs take
away, or a machine that is put to sleep, then costs a run nothing. Elsewhere the processor only waits, and the wall counts.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.common.console import progress


class Runner(NamedTuple):
    """One contestant.

    name:    for people
    state:   where it starts
    advance: (state, learning rate, turn) -> (state, mean loss); compiled already; `updates` of them a turn
    updates: a turn
    keep:    (what is kept so far, None at first; state) -> what is kept now; looks at the state after every turn, and its
             seconds do not count
    """

    name: str
    state: Any
    advance: Callable[[Any, Any, Any], tuple[Any, Any]]
    updates: int
    keep: Callable[[Any, Any], Any] | None = None


def clock() -> float:
    """Returns the seconds of this process: of the processor on a CPU, on the wall elsewhere."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


class Outcome(NamedTuple):
    """What came of it: the last state, updates made, seconds used, loss by seconds `[turns]` (a mean over seeds), what was
    kept."""

    name: str
    state: Any
    updates: int
    seconds: float
    curve: list[tuple[float, float]]
    kept: Any = None


def race(
    runners: Sequence[Runner], seconds: float, lr: Sequence[float], report: Callable[[str, float, float], None]
) -> list[Outcome]:
    """Gives every runner `seconds` of computing, one turn each in rotation.

        while somebody has time left:
            for runner in those: rate = lr / 2 (1 + cos(pi used / seconds)); state, loss = advance(state, rate, turn)
                # the clock stands
                kept = keep(kept, state)

    So every run ends annealed, whatever its speed. A turn that is begun is finished: choose turns short against `seconds`.

    Args:
      lr: each runner's rate at the start.
      report: called after every turn with (name, seconds used, loss).

    Returns:
      An `Outcome` each.

    Raises:
      FloatingPointError: a loss is not finite; names the runner.
    """
    states, used = [runner.state for runner in runners], [0.0] * len(runners)
    curves: list[list[tuple[float, float]]] = [[] for _ in runners]
    kept: list[Any] = [None] * len(runners)
    while any(spent < seconds for spent in used):
        for i, runner in enumerate(runners):
            if used[i] >= seconds:
                continue
            rate = jnp.asarray(lr[i] * 0.5 * (1 + math.cos(math.pi * used[i] / seconds)))
            turn = jnp.int32(len(curves[i]))
            begin = clock()
            states[i], loss = jax.block_until_ready(runner.advance(states[i], rate, turn))
            used[i] += clock() - begin
            mean = float(np.mean(np.asarray(loss)))
            curves[i].append((used[i], mean))
            kept[i] = runner.keep(kept[i], states[i]) if runner.keep else None
            report(runner.name, used[i], mean)
            if not math.isfinite(mean):
                raise FloatingPointError(f"{runner.name}: the loss became {mean} after {used[i]:.1f} s; lower its --lr")
    return [
        Outcome(runner.name, state, runner.updates * len(curve), spent, curve, best)
        for runner, state, spent, curve, best in zip(runners, states, used, curves, kept, strict=True)
    ]


def shown_race(title: str, runners: Sequence[Runner], seconds: float, lr: Sequence[float]) -> list[Outcome]:
    """Runs a race under one progress bar: the share of all seconds that is used, and the loss of whoever had a turn."""
    used = dict.fromkeys((runner.name for runner in runners), 0.0)
    with progress() as display:
        task = display.add_task(title, total=seconds * len(runners), loss="-")

        def report(name: str, spent: float, loss: float) -> None:
            used[name] = min(spent, seconds)
            display.update(task, completed=sum(used.values()), loss=f"{loss:.3f}")

        return race(runners, seconds, lr, report)
