"""The training loop: updates, validation, early stopping, checkpoints, resuming.

A run consists of one or more sessions: the first starts it, each later one resumes it from a
checkpoint.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tbptt.data.streams.chunks import Stream, read_ahead
from tbptt.fit.log import RunLog
from tbptt.fit.progress import completed_fraction
from tbptt.fit.stopping import Stop
from tbptt.optim.schedule import set_run_fraction
from tbptt.training import Metrics, TrainState, TrainStep

RETRY_SECONDS = 10.0  # at most, before a failed checkpoint is tried again
UPDATES_PER_SYNC = 20  # between two exchanges of flags among the processes of a run
# A schedule gets the fraction of the run rounded to 1/500: every value is a copy to the device.
FRACTION_LEVELS = 500
ENDLESS = 1 << 62


class Update(NamedTuple):
    """State after an update.

    position: number of updates so far, including those of earlier sessions
    state:    the train state; the next update donates it
    metrics:  the `Metrics` of the update, on the device
    """

    position: int
    state: TrainState
    metrics: Metrics


def training_updates(
    step: TrainStep,
    state: TrainState,
    stream: Stream,
    *,
    position: int = 0,
    end: int | None = None,
    put: Callable[[Any], Any] = jax.device_put,
    restart: Callable[[TrainState], TrainState] | None = None,
    restart_every: int | None = None,
    run_fraction: Callable[[int], float] | None = None,
) -> Iterator[Update]:
    """Yield the state after every update: the loop of `fit`, for loops of your own.

        for i in range(position, end):
            if i % restart_every == 0: state = restart(state)
            state, metrics = step(state, stream.chunk(i).batch)
            yield Update(i + 1, state, metrics)

    A background thread reads the next chunks. It ends when the iterator is closed or exhausted.

    Args:
      step: from `make_train_step`, or any `(state, batch) -> (state, metrics)`.
      state: from `init_state`; donated.
      stream: chunks by number: a `RecordingStream`, or `stream_of(batch, chunk)` of `tbptt.fit`.
      position: number of updates so far: the first chunk to use.
      end: stop before this chunk; None: no end.
      put: places a batch on the devices.
      restart, restart_every: `restart(state) -> state` is called before every `restart_every`-th
        update, to begin at the initial carry (`rewind`); None: never.
      run_fraction: `i -> fraction of the run before update i`, from 0 to 1, for an optimizer whose
        rate depends on it (`tbptt.optim.scale_by_run_fraction`).
    """
    chunks = read_ahead(stream, position, ENDLESS if end is None else end, put=put)
    level = None
    try:
        for i, chunk in chunks:
            if restart is not None and restart_every is not None and i % restart_every == 0:
                state = restart(state)
            if run_fraction is not None and (now := _level(run_fraction(i))) != level:
                state = state._replace(opt_state=set_run_fraction(state.opt_state, now))
                level = now
            state, metrics = step(state, chunk.batch)
            yield Update(i + 1, state, metrics)
    finally:
        chunks.close()  # pyright: ignore[reportAttributeAccessIssue]


class Progress(NamedTuple):
    """Argument of a callback, which is called after every validation.

    position: number of updates so far
    state:    the train state; copy what you keep, because the next update donates it
    loss:     mean loss of the updates since the last validation, each before its update; None if
      no time step counted
    numbers:  the result of `validate`; {} without a validation
    metric:   the one of these numbers that is compared, lower is better; None if there is none
    """

    position: int
    state: TrainState
    loss: float | None
    numbers: Mapping[str, float]
    metric: float | None


class Ended(NamedTuple):
    """Result of `run`.

    state:    the last train state
    position: its number of updates
    reason:   the limit that ended the run: "updates", "seconds", "patience" or "callback"; or
      "stopped" if a signal ended the session, and the run is not complete
    """

    state: TrainState
    position: int
    reason: str


class Plan(NamedTuple):
    """Limits, validation, callbacks and checkpoints of a run.

    valid_every:     updates between validations
    updates, seconds: the limits; None: no limit. Seconds are the training time of all sessions,
      without the first update of each, which compiles
    patience:        end after this many validations without a better metric; None: never
    patience_fraction: end after this fraction of the run without a better metric; None: never
    validate:        `state -> {name: number}`; None: no validation
    metric_of:       `numbers of a validation -> the one to compare`; None: its first
    validate_first:  also validate before the first update, and save a checkpoint
    callbacks:       called with a `Progress` after every validation; True ends the run
    checkpoint_seconds: seconds between checkpoints, in addition to one per validation
    put, restart, restart_every: as for `training_updates`
    reduce_metrics:  reduces the metrics of several seeds to those of one
    """

    valid_every: int
    updates: int | None = None
    seconds: float | None = None
    patience: int | None = None
    patience_fraction: float | None = None
    validate: Callable[[TrainState], Mapping[str, float]] | None = None
    metric_of: Callable[[Mapping[str, float]], float | None] | None = None
    validate_first: bool = False
    callbacks: Sequence[Callable[[Progress], Any]] = ()
    checkpoint_seconds: float = 60.0
    put: Callable[[Any], Any] = jax.device_put
    reduce_metrics: Callable[[Metrics], Metrics] = lambda metrics: metrics
    restart: Callable[[TrainState], TrainState] | None = None
    restart_every: int | None = None


def run(
    step: TrainStep,
    state: TrainState,
    stream: Stream,
    plan: Plan,
    log: RunLog,
    *,
    position: int = 0,
    checkpoints: Any = None,
    stop: Stop | None = None,
) -> Ended:
    """Train from chunk `position` on, until a limit is reached or a signal is received.

        for position, state, metrics in training_updates(...):
            if position % valid_every == 0, or at the end: validate(state), then the callbacks
            if a checkpoint is due, or at the end, or on a stop: checkpoints.save(...)

    The times of the checkpoints have no effect on the result. If a checkpoint cannot be written,
    the loop warns and tries again after some seconds. For the last one of the session it raises an
    error.

    Args:
      step, state, stream, position: as for `training_updates`.
      plan: the limits, the validation, and the rest of a `Plan`.
      log: shows the progress and records the metrics; inside its `with` block.
      checkpoints: `tbptt.checkpoints.Checkpoints`, or None.
      stop: a `Stop`, inside its `with` block; None: signals are not caught.

    Raises:
      CheckpointNotWritten: the last checkpoint of the session could not be written.
    """
    if plan.updates is not None and position >= plan.updates:
        return Ended(state, position, "updates")
    if position and (reached := _limit(plan, log, position)):  # the resumed run has ended
        return Ended(state, position, reached)
    saver = _Saver(checkpoints, plan.checkpoint_seconds, log)
    iterator = training_updates(
        step, state, stream, position=position, end=plan.updates, put=plan.put,
        restart=plan.restart, restart_every=plan.restart_every,
        run_fraction=lambda i: _run_fraction(plan, i, log.seconds),
    )  # fmt: skip
    first, callback_ends = position, False
    try:
        if plan.validate_first and position == 0:
            log.note("validating the initial parameters")
            metric, _ = _validated(plan, state, position, log)
            saver.save(position, state, metric, last=False)
        log.compiling()
        for position, state, metrics in iterator:
            if position == first + 1:
                jax.block_until_ready(metrics.loss)
                log.compiled()
                saver.restart()
            log.update(plan.reduce_metrics(metrics))
            metric, valid_due = None, position % plan.valid_every == 0
            if valid_due:
                metric, ends = _validated(plan, state, position, log)
                callback_ends |= ends  # kept until the processes exchange their flags
            reason = "callback" if callback_ends else _limit(plan, log, position)
            signalled = stop is not None and stop.signal is not None
            stopped, due, ended = _synchronized(position, signalled, saver.due(), bool(reason))
            done = ended or position == plan.updates
            if done and not valid_due:
                metric, _ = _validated(plan, state, position, log)
            if done or stopped or due or valid_due:
                saver.save(position, state, metric, last=done or stopped)
            if done or stopped:
                return Ended(state, position, (reason or "updates") if done else "stopped")
    except Exception as error:
        saver.save_after(error, position, state)
        raise
    finally:
        iterator.close()  # pyright: ignore[reportAttributeAccessIssue]
    raise AssertionError("the stream ended before the last update")


def _run_fraction(plan: Plan, i: int, seconds: float) -> float:
    """Return the fraction of the run before update i; 0 without a limit."""
    return completed_fraction(i, seconds, plan.updates, plan.seconds) or 0.0


def _level(fraction: float) -> float:
    return round(FRACTION_LEVELS * fraction) / FRACTION_LEVELS


def _limit(plan: Plan, log: RunLog, position: int) -> str:
    """Return the name of the limit that has been reached; "" if there is none."""
    if plan.seconds is not None and log.seconds >= plan.seconds:
        return "seconds"
    if plan.patience is not None and log.validations_since_best >= plan.patience:
        return "patience"
    best = log.best_validation if plan.patience_fraction is not None else None
    if best is not None and best["step"] < position:
        waited = _run_fraction(plan, position, log.seconds)
        waited -= _run_fraction(plan, best["step"], best["seconds"])
        return "patience" if waited >= (plan.patience_fraction or 0) else ""
    return ""


class _Saver:
    """Save checkpoints; if one cannot be written, try again later, unless it is the last."""

    def __init__(self, checkpoints: Any, every: float, log: RunLog) -> None:
        self._checkpoints, self._every, self._log = checkpoints, every, log
        self._wait = every
        self.restart()

    def restart(self) -> None:
        self._saved = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._wait

    def save(self, position: int, state: TrainState, metric: float | None, last: bool) -> None:
        if self._checkpoints is None:
            return
        from tbptt.checkpoints import CheckpointNotWritten

        self._log.flush()
        self._wait = self._every
        advice = "Training continues; the checkpoint will be tried again"
        try:
            if last:  # the error of an earlier checkpoint must not prevent this one
                self._checkpoints.wait()
        except CheckpointNotWritten as error:
            self._log.warn_again("checkpoint", str(error), advice)
        try:
            self._checkpoints.save(step=position, state=state, position=position, metric=metric)
            if last:
                self._checkpoints.wait()
        except CheckpointNotWritten as error:
            if last:
                raise
            self._log.warn_again("checkpoint", str(error), advice)
            self._wait = min(RETRY_SECONDS, self._every)
        self.restart()

    def save_after(self, error: Exception, position: int, state: TrainState) -> None:
        """Save the state before an update that raised an error of the data or the device.

        This is not possible if the update has donated the buffers of the state, and not useful if
        the error is that of a checkpoint.
        """
        donated = any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        if self._checkpoints is None or donated or type(error).__name__ == "CheckpointNotWritten":
            return
        try:
            self._log.flush()
            self._checkpoints.save(position, state, position)
            self._checkpoints.wait()
        except Exception as second:
            message = f"update {position} could not be saved either: {second}"
            self._log.warn("checkpoint", message)


def _validated(
    plan: Plan, state: TrainState, position: int, log: RunLog
) -> tuple[float | None, bool]:
    """Validate, log and call the callbacks; return the metric, and whether a callback ends."""
    log.flush()  # first, so that the speed of the updates excludes the validation
    numbers = {} if plan.validate is None else plan.validate(state)
    first = next(iter(numbers.values()), None)
    metric = first if plan.metric_of is None else plan.metric_of(numbers)
    metric = None if metric is None or not np.isfinite(metric) else float(metric)
    if numbers:
        log.valid(metric, **numbers)
    progress = Progress(position, state, log.loss, numbers, metric)
    return metric, any([callback(progress) is True for callback in plan.callbacks])


def _synchronized(position: int, stopped: bool, due: bool, over: bool) -> tuple[bool, bool, bool]:
    """Return whether all processes stop, save and end after update `position`.

    stopped = any process received a signal;  due, over = by the clock of the first process

    Several processes exchange the flags after every 20th update, so that all take the same branch;
    after other updates all three are False.
    """
    if jax.process_count() == 1:
        return stopped, due, over
    if position % UPDATES_PER_SYNC:
        return False, False, False
    flags = np.asarray(multihost_utils.process_allgather(jnp.array([stopped, due, over])))
    return bool(flags[:, 0].any()), bool(flags[0, 1]), bool(flags[0, 2])
