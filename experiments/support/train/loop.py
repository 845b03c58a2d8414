"""The loop of a run: deterministic, and resumable after any update, because its position is one integer."""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.support.common.stopping import Stop
from experiments.support.train.log import RunLog
from experiments.support.train.processes import agree
from tbptt import Metrics, TrainState
from tbptt.checkpoints import CheckpointNotWritten, Checkpoints
from tbptt.data import read_ahead

METRICS = ("mse", "accuracy", "bits_per_character")
RETRY = 10.0  # seconds after which a checkpoint that could not be written is tried again, at the earliest


class Plan(NamedTuple):
    """What a run does, and when.

    stream:        chunks by number
    put:           lays a batch out on the devices
    step:          `(state, batch) -> (state, metrics)`
    one:           metrics of several seeds as one; the identity for one seed
    score:         `state -> {name: number}` on the validation part, see `predicting.Score`; empty where nothing counts
    updates:       where to end; None: never
    seconds:       of training, all sessions together, after which to end; None: never
    valid_every:   updates between validations
    saved_every:   seconds between checkpoints, besides those at every validation
    """

    stream: Any
    put: Callable[[Any], Any]
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    one: Callable[[Metrics], Metrics]
    score: Callable[[TrainState], dict[str, float]]
    updates: int | None
    seconds: float | None
    valid_every: int
    saved_every: float


class Ended(NamedTuple):
    """How it ended: the state, updates in all, whether all of them are done (else it was stopped)."""

    state: TrainState
    position: int
    done: bool


def run(plan: Plan, state: TrainState, position: int, log: RunLog, checkpoints: Checkpoints, stop: Stop) -> Ended:
    """Trains from chunk `position` on until the updates or seconds are done, or until it is asked to stop.

        for i in range(position, updates):
            state, metrics = step(state, stream.chunk(i))
            if it is time: score on the validation part
            if it is time, or the end, or a stop is asked for: save (step, state, i + 1)

    When it saves changes nothing that is computed. A checkpoint that cannot be written is a warning, and is tried again
    after some seconds; the last one of the run is an error.

    Raises:
      CheckpointNotWritten: the last checkpoint could not be written.
    """
    if plan.updates is not None and position >= plan.updates:
        return Ended(state, position, True)
    end = plan.updates if plan.updates is not None else 1 << 62
    saved, wait = time.monotonic(), plan.saved_every
    chunks = read_ahead(plan.stream, position, end, put=plan.put)
    try:
        for i, chunk in chunks:
            state, metrics = plan.step(state, chunk.batch)
            log.update(plan.one(metrics))
            position = i + 1
            over = plan.seconds is not None and log.seconds >= plan.seconds
            asked, due, over = agree(position, stop.asked is not None, time.monotonic() - saved >= wait, over)
            done = over or position == plan.updates
            metric = _validated(plan, state, log) if done or position % plan.valid_every == 0 else None
            last = done or asked
            if last or due or position % plan.valid_every == 0:
                log.flush()
                wait = plan.saved_every
                try:
                    checkpoints.save(position, state, position, metric)
                    if last:
                        checkpoints.wait()
                except CheckpointNotWritten as error:
                    if last:
                        raise
                    log.warn("checkpoint", str(error), "Training goes on; it is tried again")
                    wait = min(RETRY, plan.saved_every)
                saved = time.monotonic()
            if last:
                return Ended(state, position, done)
    except CheckpointNotWritten:
        raise
    except Exception:  # of the data, or of the device: what was learnt before it is kept
        _rescue(state, position, log, checkpoints)
        raise
    finally:
        chunks.close()  # pyright: ignore[reportAttributeAccessIssue]
    raise AssertionError("a stream of endless passes ended")


def _rescue(state: TrainState, position: int, log: RunLog, checkpoints: Checkpoints) -> None:
    """Saves the state as it was before what went wrong, unless the update that failed has consumed it."""
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
        return
    try:
        log.flush()
        checkpoints.save(position, state, position)
        checkpoints.wait()
    except Exception as error:
        log.warn("checkpoint", f"no checkpoint could be made of update {position} either: {error}")


def _validated(plan: Plan, state: TrainState, log: RunLog) -> float | None:
    """Scores the state; returns what is to be small: the metric, or of an accuracy what is missing from 1."""
    log.flush()  # ahead of the scoring, whose time is not that of the updates
    numbers = plan.score(state)
    log.valid(**numbers)
    return lower_is_better(numbers)


def lower_is_better(numbers: dict[str, float]) -> float | None:
    """Returns the metric as a checkpoint has it."""
    named = {name: value for name, value in numbers.items() if name in METRICS}
    return next(((1 - value if name == "accuracy" else value) for name, value in named.items()), None)


def resumed(checkpoints: Checkpoints, state: TrainState, say: Callable[[str], None]) -> tuple[TrainState, int]:
    """Returns the newest sound state and where its stream goes on; `state` itself and 0 if there is no checkpoint.

    Args:
      say: is told of every damaged checkpoint that was passed over, and of other warnings.
    """
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = checkpoints.newest_good(state)
    for warning in seen:
        say(f"warning: {warning.message}")
    if found is None:
        return state, 0
    return found.state, int(found.position)
