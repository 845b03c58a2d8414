"""Train with any estimator: progress, validation, early stopping, the best parameters, resuming."""

import contextlib
import math
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tbptt.fit.log import RunLog
from tbptt.fit.loop import Plan, run
from tbptt.fit.loop import Progress as Progress
from tbptt.fit.loop import training_updates as training_updates
from tbptt.fit.result import Fit as Fit
from tbptt.fit.result import history_of
from tbptt.fit.result import load as load
from tbptt.fit.result import save as save
from tbptt.fit.stopping import Stop
from tbptt.fit.streams import stream_of as stream_of
from tbptt.training import Optimizer, TrainState, init_state, make_train_step, rewind
from tbptt.types import Carry, Estimator, Params, PRNGKey
from tbptt.windows import check_positive_int, length, step_shape

FEW = 10  # updates; a run with fewer gives a warning
DEFAULT_PASSES = 10


def fit(
    estimator: Estimator,
    optimizer: Optimizer,
    params: Params,
    carry: Carry,
    batches: Any,
    *,
    chunk: int | None = None,
    independent: bool | None = None,
    passes: int | None = None,
    seconds: float | None = None,
    validate: Callable[[Params], Any] | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callable[[Progress], Any]] = (),
    key: PRNGKey | None = None,
    folder: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> Fit:
    """Train parameters with one update per chunk, and return those that validate best.

        for p in range(passes):
            for batch in stream_of(batches, chunk):
                if batch starts a sequence: state = rewind(estimator, state, carry, ...)
                state, metrics = step(state, batch)
            score = validate(state.params)                        # lower is better
            best = the params with the lowest score
            stop if `patience` passes brought no lower score, after `seconds`, or if a callback
                returned True

    The train step is that of `make_train_step`; for a loop of your own see `training_updates`.
    Ctrl-C finishes the update and returns the result so far. A second Ctrl-C ends the process at
    once.

    Args:
      estimator: any `Estimator`, for example `tbptt.truncated_bptt(loss_fn, k1, k2)`.
      optimizer: any optax transformation. `tbptt.optim.adam_with_decay(lr)` clips, skips non-finite
        updates, and lets the rate fall to lr / 100 at the end, whichever limit ends the run.
      params: the initial parameters; copied.
      carry: the carry that enters every pass, and every batch if `independent`, for example
        `cell.initial_carry((B,))`; copied. The recordings of a `RecordingStream` start from
        `cell.initial_carry` instead, by its resets.
      batches: the training data, as for `from tbptt.fit import stream_of`: a `Batch`
        `[T, *batch, ...]`, an iterable of them with a length, or a `tbptt.data.RecordingStream`.
      chunk: steps per update, a divisor of T and a multiple of the estimator's k1; None: all T.
      independent: for several batches: whether each starts from `carry`.
      passes: number of passes over the data; default 10 if `seconds` is not given.
      seconds: training time, without the compilation.
      validate: `params -> score` after every pass, a number or a dict of numbers whose first one is
        compared; for example from `tbptt.make_evaluate`.
      patience: number of passes without a lower score after which training ends; None: never.
      callbacks: called after every pass with a `Progress`.
      key: for estimators that draw random numbers.
      folder: where to write checkpoints and metrics.jsonl. A folder that contains a run is resumed:
        the result is that of an uninterrupted run, bit for bit. With `seconds` this is so on a
        machine of constant speed: the clock continues at the time of the checkpoint. Needs
        orbax-checkpoint.
      checkpoint_seconds: seconds between checkpoints, in addition to one per pass.
      progress: show progress on stderr.

    Returns:
      A `Fit`: params, state, history, `plot`.

    Raises:
      TypeError, ValueError: an argument does not fit, as `stream_of`, `init_state` and the
        estimator; patience without validate; validate does not return numbers.
      tbptt.checkpoints.CheckpointMismatch: `folder` contains another run.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, tbptt
      >>> cell, readout = tbptt.GRU(1, 8), nn.Dense(1)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
      >>> x = jnp.sin(jnp.arange(301.0) / 5)[:, None, None]
      >>> train, valid = (tbptt.Batch(v[:-1], v[1:]) for v in (x[:201], x[200:]))
      >>> carry = cell.initial_carry((1,))
      >>> fitted = tbptt.fit(
      ...     tbptt.truncated_bptt(loss_fn, 10, 20), tbptt.optim.adam_with_decay(1e-2), params,
      ...     carry, train, chunk=10, passes=3, progress=False,
      ...     validate=tbptt.make_evaluate(loss_fn, carry, valid))
      >>> fitted.updates, len(fitted.history)
      (60, 3)
    """
    stream = stream_of(batches, chunk, independent)
    _check_limits(passes, seconds, patience, validate)
    passes = DEFAULT_PASSES if passes is None and seconds is None else passes
    updates = None if passes is None else passes * len(stream)
    example = stream.chunk(0).batch
    _warn_of_few(updates, len(stream), length(example))
    state = init_state(estimator, optimizer, params, carry, example, key)
    best, folder = _Best(), None if folder is None else Path(folder)
    plan = Plan(
        valid_every=len(stream),
        updates=updates,
        seconds=seconds,
        patience=patience,
        validate=None if validate is None else _numbers_of(validate),
        callbacks=(best, *callbacks),
        checkpoint_seconds=checkpoint_seconds,
        restart=lambda state: rewind(estimator, state, carry, example),
        restart_every=getattr(stream, "per_sequence", None),
    )
    with contextlib.ExitStack() as stack:
        checkpoints, position = None, 0
        if folder is not None:
            settings = {"chunk": length(example), "updates_per_pass": len(stream)}
            checkpoints = stack.enter_context(_open_checkpoints(folder, settings))
            state, position = best.resume(checkpoints, state)
        log = RunLog(
            folder,
            updates,
            seconds=seconds,
            time_steps_per_update=math.prod(step_shape(example)),
            every=len(stream),
            start=position,
            console=_console() if progress else None,
        )
        stack.enter_context(log)
        in_main_thread = threading.current_thread() is threading.main_thread()
        stop = stack.enter_context(Stop()) if in_main_thread else None  # others catch no signals
        more: Any = {"position": position, "checkpoints": checkpoints, "stop": stop}
        ended = run(make_train_step(estimator, optimizer), state, stream, plan, log, **more)
    chosen = ended.state.params if best.params is None else best.params
    return Fit(chosen, ended.state, history_of(log.rows, len(stream)), ended.position, ended.reason)


def _open_checkpoints(folder: Path, settings: Mapping[str, Any]) -> Any:
    from tbptt.checkpoints import Checkpoints

    folder.mkdir(parents=True, exist_ok=True)
    return Checkpoints(folder / "checkpoints", {"program": "tbptt.fit", **settings})


class _Best:
    """A callback that copies the parameters with the lowest metric."""

    def __init__(self) -> None:
        self.metric: float | None = None
        self.params: Params = None

    def resume(self, checkpoints: Any, state: TrainState) -> tuple[TrainState, int]:
        """Return the state to continue from, and its number of updates."""
        found = checkpoints.newest_good(state)
        if found is None:
            return state, 0
        if (best := checkpoints.best(state)) is not None:
            self.params, self.metric = jax.tree.map(jnp.asarray, best.state.params), best.metric
        return found.state, int(found.position)

    def __call__(self, progress: Progress) -> None:
        if progress.metric is not None and (self.metric is None or progress.metric < self.metric):
            self.metric = progress.metric
            self.params = jax.tree.map(jnp.copy, progress.state.params)


def _numbers_of(validate: Callable[[Params], Any]) -> Callable[[TrainState], Mapping[str, float]]:
    def numbers(state: TrainState) -> dict[str, float]:
        found = validate(state.params)
        named = found if isinstance(found, Mapping) else {"loss": found}
        try:
            return {str(name): float(value) for name, value in named.items()}
        except (TypeError, ValueError) as error:
            raise TypeError(
                "validate must return a number, or a dict of numbers whose first one is compared; "
                f"got {found!r:.80}"
            ) from error

    return numbers


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else 120)


def _check_limits(
    passes: int | None, seconds: float | None, patience: int | None, validate: Any
) -> None:
    if passes is not None:
        check_positive_int("passes", passes, "pass")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be above 0; got {seconds}")
    if patience is not None:
        check_positive_int("patience", patience, "pass")
        if validate is None:
            raise ValueError(
                f"patience counts validations, but validate is None; got patience={patience}. Give "
                "validate, for example tbptt.make_evaluate(loss_fn, carry, valid)"
            )


def _warn_of_few(updates: int | None, per_pass: int, steps: int) -> None:
    if updates is not None and updates < FEW:
        warnings.warn(
            f"training makes only {updates} updates: {per_pass} per pass, each of {steps} steps. "
            "Use a smaller chunk, shorter sequences or more passes",
            stacklevel=3,
        )
