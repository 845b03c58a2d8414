"""Log a run: progress on stderr, metrics.jsonl, warnings about gradients, TensorBoard files.

metrics.jsonl has one JSON object per line, each with "kind" and "step" (updates so far); null
stands for a value that is not finite or not known:

    train        every `every` updates: updates (their number), loss and grad_norm (means over the
                 finite values, before clipping), grad_norm_max, clipped (fraction), non_finite
                 (count), time_steps_per_second, seconds (training time of all sessions)
    valid        the numbers given to `valid`; metric (the one that is compared), seconds
    warning      what ("exploded", "vanished", "non_finite", or another kind), message, advice
    resumed      removed (number of later lines that were removed, to be written again)
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from tbptt.fit import health
from tbptt.fit.metrics_file import (
    EventFiles,
    MetricLine,
    MetricsFile,
    Row,
    remove_after,
    updates_of,
)
from tbptt.fit.progress import Console, Pace, Status, make_view, print_line
from tbptt.training import Metrics

FETCH_SECONDS = 1.0  # between two fetches of metrics from the device, each of which waits for it


class RunLog:
    """Log of a run; a context manager.

        with RunLog(folder, total=5000, time_steps_per_update=k1 * B) as log:
            for chunk in stream:
                state, metrics = step(state, chunk.batch)
                log.update(metrics)                  # one update, or the [n] of an epoch
                if due: log.valid(metric, mse=...)
                if due: log.flush(); checkpoints.save(...)

    Metrics are fetched once per second or once per line, so that the host does not wait for the
    device at every update.

    Args:
        folder: the folder of metrics.jsonl, which exists; None: the rows are kept in memory only.
        total: total number of updates, if that is a limit of the run.
        seconds: total training time, if that is a limit; compare it with `log.seconds`.
        time_steps_per_update: time steps times batch size; None shows updates per second.
        every: number of updates per line.
        advice: `kind of warning -> suggestion`.
        start: number of updates already made; later lines of an earlier session are removed from
          metrics.jsonl.
        tensorboard: also write event files; requires tensorboardX.
        line_seconds: seconds between plain lines, where there is no live display.
        console: the console of the display, a rich console; None: no display.

    Attributes:
        rows: the lines so far, earlier sessions included.

    Raises:
        ImportError: `tensorboard` is True and tensorboardX is not installed.
        ValueError: metrics.jsonl is damaged; the message names the line.
    """

    def __init__(
        self,
        folder: Path | None = None,
        total: int | None = None,
        *,
        seconds: float | None = None,
        time_steps_per_update: int | None = None,
        every: int = 50,
        advice: Callable[[str], str] = health.advice,
        start: int = 0,
        tensorboard: bool = False,
        line_seconds: float = 10.0,
        console: Console | None = None,
    ) -> None:
        self._total, self._per_update, self._every = total, time_steps_per_update, every
        self._advice, self._console = advice, console
        self._events, self._file, kept = None, None, []
        self.rows: list[Row] = []
        if folder is not None:
            self._events = EventFiles(folder / "tensorboard", start) if tensorboard else None
            kept, removed = remove_after(folder / "metrics.jsonl", start)
            self.rows += kept
            self._file = MetricsFile(folder / "metrics.jsonl", self._cannot_write)
            if kept or removed:
                self._append({"kind": "resumed", "step": start, "removed": removed})
        self._before = max((row.get("seconds", 0.0) for row in kept), default=0.0)
        self._updates = start
        self._pending: list[tuple[Metrics, dict[str, Any]]] = []
        self._line, self._last, self._valid = MetricLine(), {}, None
        self._history = health.history_of(kept)
        self._again: dict[str, tuple[float, float]] = {}
        self._began: float | None = None
        self._opened = self._fetched = time.monotonic()
        self._seconds_in_line = 0.0
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
            if self._file is not None and (lost := self._file.close()):
                self._print(f"{lost} lines could not be written to metrics.jsonl and are lost")
            if self._events is not None:
                self._events.close()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier sessions included.

        The clock starts after the first update of a session, which compiles. In a resumed session
        this update counts with the mean time of the earlier ones.
        """
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    @property
    def fraction(self) -> float | None:
        """Completed fraction of the run, 0 .. 1; None if it has no limit."""
        return self._pace.fraction(self._updates, self.seconds)

    @property
    def loss(self) -> float | None:
        """Mean loss of the updates of the last line."""
        return self._last.get("loss")

    @property
    def validations_since_best(self) -> int:
        """Number of validations after the one with the lowest metric; 0 without a metric."""
        rows, best = [row for row in self.rows if row["kind"] == "valid"], self.best_validation
        return 0 if best is None else len(rows) - 1 - rows.index(best)

    @property
    def best_validation(self) -> Row | None:
        """The first line of a validation with the lowest metric; None without a metric."""
        rows = [row for row in self.rows if row["kind"] == "valid"]
        scored = [row for row in rows if row.get("metric") is not None]
        return min(scored, key=lambda row: row["metric"], default=None)

    def note(self, text: str) -> None:
        """Show what the run does now."""
        self._view.note(text)

    def compiling(self) -> None:
        """Show that the first update compiles the train step."""
        self._opened = time.monotonic()
        self.note("compiling the train step")

    def compiled(self) -> None:
        """Start the clock: the first update is complete."""
        self.note(f"compiled in {time.monotonic() - self._opened:.1f} s")
        self._before += self._before / max(self._updates - 1, 1)
        self._began = self._fetched = time.monotonic()

    def update(self, metrics: Metrics, **extra: Any) -> None:
        """Add device metrics of one update or of an epoch `[n]`, and other numbers by name."""
        if self._began is None:  # used without `compiling` and `compiled`
            self._began = self._opened
        self._pending.append((metrics._replace(info=None), extra))
        waiting = self._line.updates + sum(math.prod(np.shape(m.loss)) for m, _ in self._pending)
        if waiting >= self._every or time.monotonic() - self._fetched >= FETCH_SECONDS:
            self._fetch()

    def valid(self, metric: float | None = None, **numbers: int | float) -> None:
        """Add the scores of a validation after the updates so far, and the one to compare."""
        self.flush()
        scores = {name: _or_none(value) for name, value in numbers.items()}
        self._write("valid", scores | {"metric": None if metric is None else _or_none(metric)})
        name, value = next(((n, v) for n, v in numbers.items() if isinstance(v, float)), ("", 0.0))
        best = (self.best_validation or {}).get(name)
        now, least = f"{value:.4g}", "" if best is None else f"{best:.4g}"
        self._valid = f"valid {name} {now}" if name else None
        if self._valid and least not in ("", now):
            self._valid += f" (best {least})"
        if self._console is not None:
            self._view.show(self._status())

    def warn(self, what: str, message: str, advice: str = "") -> None:
        """Print a warning and append it to metrics.jsonl."""
        where = f"update {self._updates}: " if self._updates else ""
        self._print(f"warning: {where}{message}" + (f"; {advice}" if advice else ""))
        self._write("warning", {"what": what, "message": message, "advice": advice})

    def warn_again(self, what: str, message: str, advice: str = "") -> None:
        """Warn of a persistent fault: at once, then again after 30, 60, 120, ... seconds."""
        now = time.monotonic()
        due, wait = self._again.get(what, (now, 15.0))
        if now >= due:
            self.warn(what, message, advice)
            self._again[what] = (now + 2 * wait, 2 * wait)

    def flush(self) -> None:
        """Write the pending metrics.

        Call it before a checkpoint, so that a line ends at the update of the checkpoint.
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
            self._updates += 1
            self._line.add(update)
            self._seconds_in_line += each
            self._history, finding = health.check(
                self._history, update.loss, update.grad_norm, update.non_finite
            )
            if finding is not None:
                self.warn(finding.kind, finding.message, self._advice(finding.kind))
            if self._updates % self._every == 0:
                self._write_line()
        if fetched:
            self._pace.mark(self._updates)
            self._view.show(self._status())

    def _write_line(self) -> None:
        rate = self._line.updates / max(self._seconds_in_line, 1e-9)
        self._last, self._line, self._seconds_in_line = self._line.numbers(), MetricLine(), 0.0
        self._write(
            "train", {**self._last, "time_steps_per_second": rate * (self._per_update or 1)}
        )

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        self._append(
            {"kind": kind, "step": self._updates, **values, "seconds": round(self.seconds, 3)}
        )
        if self._events is not None and kind != "warning":
            self._events.add(kind, self._updates, values)

    def _append(self, row: Row) -> None:
        self.rows.append(row)
        if self._file is not None:
            self._file.append(row)

    def _status(self) -> Status:
        numbers = self._line.numbers() if self._line.updates else self._last
        rate = self._pace.rate()
        return Status(
            self._updates,
            self._total,
            fraction=self.fraction,
            loss=numbers.get("loss"),
            grad_norm=numbers.get("grad_norm"),
            clipped=numbers.get("clipped"),
            rate=None if rate is None else rate * (self._per_update or 1),
            unit="steps" if self._per_update else "updates",
            left=self._pace.left(self._updates, self.seconds),
            valid=self._valid,
        )

    def _cannot_write(self, error: OSError) -> None:
        self._print(
            f"warning: cannot write metrics.jsonl: {error}. Training continues; the lines will be "
            f"written later"
        )

    def _print(self, text: str) -> None:
        if self._console is not None:
            print_line(self._console, text, style="bold yellow")


def _or_none(value: int | float) -> float | None:
    return float(value) if math.isfinite(value) else None
