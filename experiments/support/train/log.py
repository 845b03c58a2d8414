"""Log a run: progress on stderr, metrics.jsonl, warnings about gradients, TensorBoard files.

The files in the folder of a run, which `experiments.support.train.report` and `experiments.predict`
read:

    config.json      written by train: the flags under their own names (cell, hidden, ...), and
                     under "task" the task with its columns and scaling, see `task.to_json`
    metrics.jsonl    written by RunLog, one object per line, each with "kind" and "step" (updates
                     so far); null stands for
                     a value that is not finite or not known
        train        every `every` updates: updates (their number), loss and grad_norm (means over
                     the finite ones, before clipping), grad_norm_max, clipped (fraction),
                     non_finite (count),
                     steps_per_second, seconds (training time of all sessions so far)
        valid        the numbers given to `valid`, seconds
        warning      what ("exploded", "vanished", "non_finite", or another word), message, advice
        resumed      removed (number of later lines that were removed, to be written again)
    predictions.csv  written by train for the test part, in the units of the data: row, truth,
                     prediction. For a forecast, row is the row at which it was made and truth the
                     value `horizon` rows later, empty beyond the end. For symbols and classes also
                     p_truth
    summary.json     written by train at the end: test_metric, baseline, checkpoint, ...
    checkpoints/     written by tbptt.checkpoints
    tensorboard/     written by RunLog, with tensorboard=True
    report.html      written by the report
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.support.common.console import console as stderr
from experiments.support.train import health
from experiments.support.train.event_files import EventFiles
from experiments.support.train.metric_line import MetricLine, updates_of
from experiments.support.train.metrics_file import MetricsFile, remove_after
from experiments.support.train.progress_view import Pace, Status, make_view
from tbptt import Metrics

FETCH_SECONDS = 1.0  # between two fetches of metrics from the device, which wait for it


class RunLog:
    """Log of a run; a context manager.

        with RunLog(folder, total=5000, steps_per_update=k1 * B, settings=settings) as log:
            for chunk in stream:
                state, metrics = step(state, chunk.batch)
                log.update(metrics)                  # one update, or the [n] of an epoch
                if due: log.valid(mse=...)
                if due: log.flush(); checkpoints.save(...)

    Metrics are fetched once per second or once per line, so that the host does not wait for the
    device at every update.

    Args:
        folder: the folder of the run, which exists.
        total: total number of updates, if that is the limit of the run.
        seconds: total training time, if that is the limit; compare it with `log.seconds`.
        steps_per_update: time steps times batch size; None shows updates per second.
        every: number of updates per line of metrics.jsonl.
        settings: lr, clip, k2 and cell of the run, which the advice of a warning mentions.
        start: number of updates already made; later lines of an earlier session are removed from
          metrics.jsonl.
        tensorboard: also write event files; requires tensorboardX.
        line_seconds: seconds between plain lines, where there is no live display.
        console: the console of the display, by default stderr.

    Raises:
        ImportError: `tensorboard` is True and the extra is not installed.
        ValueError: metrics.jsonl is damaged; the message names the line.
    """

    def __init__(
        self,
        folder: Path,
        total: int | None = None,
        *,
        seconds: float | None = None,
        steps_per_update: int | None = None,
        every: int = 50,
        settings: Mapping[str, Any] | None = None,
        start: int = 0,
        tensorboard: bool = False,
        line_seconds: float = 10.0,
        console: Console = stderr,
    ) -> None:
        self._total, self._per_update, self._every = total, steps_per_update, every
        self._settings, self._console = dict(settings or {}), console
        self._events = EventFiles(folder / "tensorboard", start) if tensorboard else None
        kept, removed = remove_after(folder / "metrics.jsonl", start)
        self._file = MetricsFile(folder / "metrics.jsonl", self._cannot_write)
        if kept or removed:
            self._file.append({"kind": "resumed", "step": start, "removed": removed})
        self._before = max((row.get("seconds", 0.0) for row in kept), default=0.0)
        self._step = start
        self._pending: list[tuple[Metrics, dict[str, Any]]] = []
        self._line, self._last, self._valid = MetricLine(), {}, None
        self._history = health.history_of(kept)
        self._began = self._fetched = time.monotonic()
        self._line_seconds = 0.0
        self._pace = Pace(total, seconds)
        self._view = make_view(console, line_seconds)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.flush()
        finally:
            self._view.end(self._status())
            if lost := self._file.close():
                self._print(f"{lost} lines could not be written to metrics.jsonl and are lost")
            if self._events is not None:
                self._events.close()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier sessions included."""
        return self._before + time.monotonic() - self._began

    def update(self, metrics: Metrics, **extra: Any) -> None:
        """Add device metrics of one update or of an epoch `[n]`, and other numbers by name."""
        self._pending.append((metrics._replace(info=None), extra))
        waiting = self._line.updates + sum(math.prod(np.shape(m.loss)) for m, _ in self._pending)
        if waiting >= self._every or time.monotonic() - self._fetched >= FETCH_SECONDS:
            self._fetch()

    def valid(self, **numbers: float) -> None:
        """Add the scores on held-out data after the updates so far."""
        self.flush()
        self._valid = "  ".join(
            f"{name} {value:.4g}" for name, value in numbers.items() if isinstance(value, float)
        )
        self._write("valid", {name: _or_none(value) for name, value in numbers.items()})

    def warn(self, what: str, message: str, advice: str = "") -> None:
        """Print a warning and append it to metrics.jsonl."""
        self._print(f"warning: update {self._step}: {message}" + (f"; {advice}" if advice else ""))
        self._write("warning", {"what": what, "message": message, "advice": advice})

    def flush(self) -> None:
        """Write the pending metrics.

        Call it before a checkpoint, so that a line ends at the step of the checkpoint.
        """
        self._fetch()
        if self._line.updates:
            self._write_line()

    def _fetch(self) -> None:
        """Fetch the pending metrics, check every update, and show the progress."""
        fetched, self._pending = jax.device_get(self._pending), []
        updates = [update for metrics, extra in fetched for update in updates_of(metrics, extra)]
        # The time of a single update is unknown: the time since the last fetch is divided equally.
        now = time.monotonic()
        each, self._fetched = (now - self._fetched) / max(len(updates), 1), now
        for update in updates:
            self._step += 1
            self._line.add(update)
            self._line_seconds += each
            self._history, finding = health.check(
                self._history, update.loss, update.grad_norm, update.non_finite
            )
            if finding is not None:
                self.warn(
                    finding.kind, finding.message, health.advice(finding.kind, self._settings)
                )
            if self._step % self._every == 0:
                self._write_line()
        if fetched:
            self._pace.mark(self._step)
            self._view.show(self._status())

    def _write_line(self) -> None:
        rate = self._line.updates / max(self._line_seconds, 1e-9)
        self._last, self._line, self._line_seconds = self._line.numbers(), MetricLine(), 0.0
        self._write("train", {**self._last, "steps_per_second": rate * (self._per_update or 1)})

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        self._file.append(
            {"kind": kind, "step": self._step, **values, "seconds": round(self.seconds, 3)}
        )
        if self._events is not None and kind != "warning":
            self._events.add(kind, self._step, values)

    def _status(self) -> Status:
        numbers = self._line.numbers() if self._line.updates else self._last
        rate = self._pace.rate()
        return Status(
            self._step,
            self._total,
            share=self._pace.share(self._step, self.seconds),
            loss=numbers.get("loss"),
            grad_norm=numbers.get("grad_norm"),
            clipped=numbers.get("clipped"),
            rate=None if rate is None else rate * (self._per_update or 1),
            unit="steps" if self._per_update else "updates",
            left=self._pace.left(self._step, self.seconds),
            valid=self._valid,
        )

    def _cannot_write(self, error: OSError) -> None:
        self._print(
            f"warning: cannot write metrics.jsonl: {error}. Training continues; the lines will be "
            f"written later"
        )

    def _print(self, text: str) -> None:
        self._console.print(
            text, style="bold yellow", markup=False, highlight=False, soft_wrap=True
        )


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
