"""Train several runs for equal seconds, in turns, so that other load affects all equally.

On a CPU the seconds are CPU time summed over all cores, which excludes the work of other programs.
On other devices, where the CPU only waits, they are wall-clock time.
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
    """One of the runs.

    name:    name for display
    state:   initial state
    advance: compiled function of one turn, (state, learning rate, turn) -> (state, mean loss)
    updates: number of updates per turn
    keep:    (kept value, None at first; state) -> kept value, called after every turn, untimed
    """

    name: str
    state: Any
    advance: Callable[[Any, Any, Any], tuple[Any, Any]]
    updates: int
    keep: Callable[[Any, Any], Any] | None = None


def clock() -> float:
    """Return the CPU seconds of this process if it computes on the CPU, else wall-clock seconds."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


class Outcome(NamedTuple):
    """Result of one run.

    state:   final state
    updates: number of updates
    seconds: seconds used
    curve:   (seconds used, mean loss) after every turn
    kept:    the last value of `keep`
    """

    name: str
    state: Any
    updates: int
    seconds: float
    curve: list[tuple[float, float]]
    kept: Any = None


def run_in_turns(
    runners: Sequence[Runner],
    seconds: float,
    lr: Sequence[float],
    report: Callable[[str, float, float], None],
) -> list[Outcome]:
    """Train every runner for `seconds`, one turn each in rotation.

        while a runner has time left:
            for runner in those with time left:
                rate = lr / 2 (1 + cos(pi used / seconds))
                state, loss = advance(state, rate, turn)           # only this is timed
                kept = keep(kept, state)

    The learning rate of every run thus falls to 0, whatever its speed. A turn is always completed,
    so it should be short compared with `seconds`.

    Args:
      lr: initial learning rate of each runner.
      report: called after every turn with (name, seconds used, loss).

    Returns:
      One `Outcome` per runner.

    Raises:
      FloatingPointError: a loss is not finite; the message names the runner.
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
                raise FloatingPointError(
                    f"{runner.name}: the loss is {mean} after {used[i]:.1f} s; use a lower --lr"
                )
    return [
        Outcome(runner.name, state, runner.updates * len(curve), spent, curve, best)
        for runner, state, spent, curve, best in zip(
            runners, states, used, curves, kept, strict=True
        )
    ]


def run_with_progress(
    title: str, runners: Sequence[Runner], seconds: float, lr: Sequence[float]
) -> list[Outcome]:
    """Call `run_in_turns` with a progress bar of seconds and the latest loss."""
    used = dict.fromkeys((runner.name for runner in runners), 0.0)
    with progress() as display:
        task = display.add_task(title, total=seconds * len(runners), loss="-")

        def report(name: str, spent: float, loss: float) -> None:
            used[name] = min(spent, seconds)
            display.update(task, completed=sum(used.values()), loss=f"{loss:.3f}")

        return run_in_turns(runners, seconds, lr, report)
