"""The log of a run: a display for people, metrics.jsonl for programs, a watch on the gradients, event files if wanted.

A run's folder, which `experiments.support.train.report` and `experiments.predict` read, and who writes what:

    config.json      by train: the flags under their own names (cell, hidden, layers, k1, k2, lr, clip, ...), and under
                     "task" what is predicted and how the model is fed: `run_task.to_json`
    metrics.jsonl    by RunLog, one object a line, each with "kind" and "step" (updates so far); null: not finite, not known
        train        every `every` updates: updates (how many the line covers), loss and grad_norm (means over the finite
                     ones, before clipping), grad_norm_max, clipped (share), non_finite (how many), steps_per_second,
                     seconds (of training so far, all sessions together)
        valid        the numbers given to `valid`, seconds
        warning      what ("exploded", "vanished", "non_finite", or another word), message, advice
        resumed      cut (how many lines after this step were taken out, to be written again)
    predictions.csv  by train, on the test part, in the data's own units: row, truth, prediction. A forecast: row is where
                     it was made, truth the value `horizon` rows later, empty beyond the end. Symbols, classes: p_truth too
    summary.json     by train, when it has ended: test_metric, baseline, steps_per_second, checkpoint, ...
    checkpoints/     by tbptt.checkpoints
    tensorboard/     by RunLog, with tensorboard=True
    report.html      by the report
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
from experiments.support.train.metrics_file import MetricsFile, cut_after
from experiments.support.train.progress_view import Pace, Status, make_view
from tbptt import Metrics

PATIENCE = 1.0  # seconds between two looks at what the device has computed


class RunLog:
    """Follows a run; a context manager.

        with RunLog(folder, total=5000, steps_per_update=k1 * lanes, settings=settings, start=int(state.step)) as log:
            for chunk in stream:
                state, metrics = step(state, chunk.batch)
                log.update(metrics)                  # one update, or an epoch's [n]
                if due: log.valid(mse=...)
                if due: log.flush(); checkpoints.save(...)

    The device is not waited for at every update: metrics are fetched once a second, or once a line.

    Args:
        folder: the run's folder, which exists.
        total: updates in all, if that is what ends the run.
        seconds: of training in all, if that does; `log.seconds` is compared with it.
        steps_per_update: time steps times lanes; None: updates per second are shown.
        every: updates a line of metrics.jsonl.
        settings: lr, clip, k2, cell as set: for advice with numbers.
        start: updates already made; later lines of an earlier session are taken out of metrics.jsonl.
        tensorboard: event files too, by the extra `tensorboard`.
        calm: seconds between plain lines, where there is no live display.
        console: where people read; stderr.

    Raises:
        ImportError: tensorboard without its extra.
        ValueError: metrics.jsonl is damaged; names the line.
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
        calm: float = 10.0,
        console: Console = stderr,
    ) -> None:
        self._total, self._per_update, self._every = total, steps_per_update, every
        self._settings, self._console = dict(settings or {}), console
        self._events = EventFiles(folder / "tensorboard", start) if tensorboard else None
        kept, cut = cut_after(folder / "metrics.jsonl", start)
        self._file = MetricsFile(folder / "metrics.jsonl", self._cannot_write)
        if kept or cut:
            self._file.append({"kind": "resumed", "step": start, "cut": cut})
        self._before = max((row.get("seconds", 0.0) for row in kept), default=0.0)
        self._step = start
        self._pending: list[tuple[Metrics, dict[str, Any]]] = []
        self._line, self._last, self._valid = MetricLine(), {}, None
        self._seen = health.seen_in(kept)
        self._began = self._looked = time.monotonic()
        self._line_seconds = 0.0
        self._pace = Pace(total, seconds)
        self._view = make_view(console, calm)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.flush()
        finally:
            self._view.end(self._status())
            if lost := self._file.close():
                self._say(f"{lost} lines could not be written to metrics.jsonl and are lost")
            if self._events is not None:
                self._events.close()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier sessions included."""
        return self._before + time.monotonic() - self._began

    def update(self, metrics: Metrics, **extra: Any) -> None:
        """Takes in the metrics of one update, or of an epoch `[n]`, still on the device; extra: other numbers, by name."""
        self._pending.append((metrics._replace(info=None), extra))
        waiting = self._line.updates + sum(math.prod(np.shape(m.loss)) for m, _ in self._pending)
        if waiting >= self._every or time.monotonic() - self._looked >= PATIENCE:
            self._look()

    def valid(self, **numbers: float) -> None:
        """Records what was measured on held-out data after the updates so far."""
        self.flush()
        self._valid = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items() if isinstance(value, float))
        self._write("valid", {name: _or_none(value) for name, value in numbers.items()})

    def warn(self, what: str, message: str, advice: str = "") -> None:
        """Tells people at once, and the file."""
        self._say(f"warning, update {self._step}: {message}. {advice}".strip())
        self._write("warning", {"what": what, "message": message, "advice": advice})

    def flush(self) -> None:
        """Writes what is known so far; call it before a checkpoint, so that a line ends where the checkpoint stands."""
        self._look()
        if self._line.updates:
            self._write_line()

    def _look(self) -> None:
        """Fetches what the device has computed, watches every update, and shows where the run is."""
        fetched, self._pending = jax.device_get(self._pending), []
        known = [update for metrics, extra in fetched for update in updates_of(metrics, extra)]
        # Only here is it known that they are computed: when each of them was, is not, so they share the time alike.
        now = time.monotonic()
        each, self._looked = (now - self._looked) / max(len(known), 1), now
        for update in known:
            self._step += 1
            self._line.add(update)
            self._line_seconds += each
            self._seen, finding = health.watch(self._seen, update.loss, update.grad_norm, update.non_finite)
            if finding is not None:
                self.warn(finding.kind, finding.message, health.advice(finding.kind, self._settings))
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
        self._file.append({"kind": kind, "step": self._step, **values, "seconds": round(self.seconds, 3)})
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
        self._say(f"warning: cannot write metrics.jsonl: {error}. Training goes on; its lines are kept and tried again")

    def _say(self, text: str) -> None:
        self._console.print(text, style="bold yellow", markup=False, highlight=False, soft_wrap=True)


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
