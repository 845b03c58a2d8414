"""Run the training loop, which can be resumed after any update."""

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
RETRY = 10.0  # seconds, at most, before a failed checkpoint is tried again


class Plan(NamedTuple):
    """Parts and limits of a run.

    stream:             chunks by number
    put:                place a batch on the devices
    step:               `(state, batch) -> (state, metrics)`
    merge:              reduce the metrics of several seeds to those of one
    score:              `state -> {name: number}` on the validation part, see `predicting.Score`
    updates:            total number of updates; None for no limit
    seconds:            total training time of all sessions; None for no limit
    valid_every:        updates between validations
    checkpoint_seconds: seconds between checkpoints, in addition to those at every validation
    """

    stream: Any
    put: Callable[[Any], Any]
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    merge: Callable[[Metrics], Metrics]
    score: Callable[[TrainState], dict[str, float]]
    updates: int | None
    seconds: float | None
    valid_every: int
    checkpoint_seconds: float


class Ended(NamedTuple):
    """End of a session: state, total number of updates, and whether the run is complete."""

    state: TrainState
    position: int
    done: bool


def run(
    plan: Plan, state: TrainState, position: int, log: RunLog, checkpoints: Checkpoints, stop: Stop
) -> Ended:
    """Train from chunk `position` on until a limit is reached or a stop is requested.

        for i in range(position, updates):
            state, metrics = step(state, stream.chunk(i))
            if a validation is due: score on the validation part
            if a checkpoint is due, or at the end, or on a stop: save (step, state, i + 1)

    The times of the checkpoints have no effect on the result. If a checkpoint cannot be written,
    the loop warns and tries again after some seconds; for the last one of the run it raises.

    Raises:
      CheckpointNotWritten: the last checkpoint could not be written.
    """
    if plan.updates is not None and position >= plan.updates:
        return Ended(state, position, True)
    end = plan.updates if plan.updates is not None else 1 << 62
    saved, wait = time.monotonic(), plan.checkpoint_seconds
    chunks = read_ahead(plan.stream, position, end, put=plan.put)
    try:
        for i, chunk in chunks:
            state, metrics = plan.step(state, chunk.batch)
            log.update(plan.merge(metrics))
            position = i + 1
            over = plan.seconds is not None and log.seconds >= plan.seconds
            stopped, due, over = agree(
                position, stop.signal is not None, time.monotonic() - saved >= wait, over
            )
            done = over or position == plan.updates
            metric = (
                _validated(plan, state, log) if done or position % plan.valid_every == 0 else None
            )
            last = done or stopped
            if last or due or position % plan.valid_every == 0:
                log.flush()
                wait = plan.checkpoint_seconds
                try:
                    checkpoints.save(position, state, position, metric)
                    if last:
                        checkpoints.wait()
                except CheckpointNotWritten as error:
                    if last:
                        raise
                    log.warn(
                        "checkpoint",
                        str(error),
                        "Training continues; the checkpoint will be tried again",
                    )
                    wait = min(RETRY, plan.checkpoint_seconds)
                saved = time.monotonic()
            if last:
                return Ended(state, position, done)
    except CheckpointNotWritten:
        raise
    except Exception:  # an error of the data or of the device
        _save_on_error(state, position, log, checkpoints)
        raise
    finally:
        chunks.close()  # pyright: ignore[reportAttributeAccessIssue]
    raise AssertionError("read_ahead ended before the last update")


def _save_on_error(state: TrainState, position: int, log: RunLog, checkpoints: Checkpoints) -> None:
    """Save the state before the failed update, unless that update has donated its buffers."""
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
        return
    try:
        log.flush()
        checkpoints.save(position, state, position)
        checkpoints.wait()
    except Exception as error:
        log.warn("checkpoint", f"update {position} could not be saved either: {error}")


def _validated(plan: Plan, state: TrainState, log: RunLog) -> float | None:
    """Score and log the state; return the metric as `lower_is_better`."""
    log.flush()  # before scoring, whose time is not that of the updates
    numbers = plan.score(state)
    log.valid(**numbers)
    return lower_is_better(numbers)


def lower_is_better(numbers: dict[str, float]) -> float | None:
    """Return the metric that a checkpoint stores: the metric itself, or 1 - accuracy.

    None if there is none.
    """
    named = {name: value for name, value in numbers.items() if name in METRICS}
    return next(
        ((1 - value if name == "accuracy" else value) for name, value in named.items()), None
    )


def resumed(
    checkpoints: Checkpoints, state: TrainState, print_line: Callable[[str], None]
) -> tuple[TrainState, int]:
    """Return the newest valid state and its stream position, or `state` and 0.

    Args:
      print_line: called with every warning, for example that a damaged checkpoint was skipped.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checkpoints.newest_good(state)
    for warning in caught:
        print_line(f"warning: {warning.message}")
    if found is None:
        return state, 0
    return found.state, int(found.position)
