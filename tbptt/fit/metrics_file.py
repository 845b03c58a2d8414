"""Write the metrics of a run into files: lines of metrics.jsonl, and TensorBoard event files.

metrics.jsonl has one JSON object per line and no update twice. A line holds the metrics of several
updates, reduced to one number each. Event files require tensorboardX.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tbptt.training import Metrics

Row = dict[str, Any]


class Update(NamedTuple):
    """One update, on the host; extra: other numbers by name."""

    loss: float
    grad_norm: float
    clipped: bool | None
    non_finite: bool
    extra: dict[str, float]


def updates_of(metrics: Metrics, extra: dict[str, Any]) -> list[Update]:
    """Split fetched metrics, of one update or of an epoch `[n]`, into updates.

    Extra numbers are scalars or `[n]`.
    """
    loss, norm, bad = (
        np.atleast_1d(leaf) for leaf in (metrics.loss, metrics.grad_norm, metrics.non_finite)
    )
    clipped = None if metrics.clipped is None else np.atleast_1d(metrics.clipped)
    named = {
        name: np.broadcast_to(np.asarray(value, np.float64), loss.shape)
        for name, value in extra.items()
    }
    return [
        Update(
            float(loss[i]),
            float(norm[i]),
            None if clipped is None else bool(clipped[i]),
            bool(bad[i]),
            {name: float(values[i]) for name, values in named.items()},
        )
        for i in range(len(loss))
    ]


class MetricLine:
    """Updates of one line of metrics.jsonl."""

    def __init__(self) -> None:
        self.updates = 0
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._clipped: list[bool] = []
        self._extra: defaultdict[str, list[float]] = defaultdict(list)
        self._non_finite = 0

    def add(self, update: Update) -> None:
        """Add one update; its numbers are left out if no time step of its chunk counts."""
        self.updates += 1
        if update.loss == 0 and update.grad_norm == 0:  # no time step of the chunk counts
            return
        self._losses.append(update.loss)
        self._norms.append(update.grad_norm)
        self._clipped += [] if update.clipped is None else [update.clipped]
        self._non_finite += update.non_finite
        for name, value in update.extra.items():
            self._extra[name].append(value)

    def numbers(self) -> dict[str, Any]:
        """Return the values of the line by name: means over the finite values, None without any.

        `non_finite` is the number of non-finite updates.
        """
        norms = [norm for norm in self._norms if math.isfinite(norm)]
        return {
            "updates": self.updates,
            "loss": _mean(self._losses),
            "grad_norm": _mean(norms),
            "grad_norm_max": max(norms, default=None),
            "clipped": _mean([float(c) for c in self._clipped]),
            "non_finite": self._non_finite,
            **{name: _mean(values) for name, values in self._extra.items()},
        }


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


class MetricsFile:
    """Append-only file of rows; each row is written when it is added.

    A row that cannot be written (a full disk) is kept in memory and written with the next one, so
    that training continues. `on_error(error)` is called at the first of several consecutive
    failures.
    """

    def __init__(self, path: Path, on_error: Callable[[OSError], None]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = os.fstat(self._file).st_size
        self._waiting: list[bytes] = []
        self._on_error = on_error
        self._failing = False

    def append(self, row: Row) -> None:
        """Append one row; raise ValueError if it contains NaN or inf, which JSON does not have."""
        self._waiting.append(_encoded(row))
        self.retry()

    def retry(self) -> None:
        """Write the pending rows."""
        data = b"".join(self._waiting)
        try:
            written = os.write(self._file, data) if data else 0
            if written < len(data):  # a partial write: the next call raises the reason
                os.write(self._file, data[written:])
        except OSError as error:
            if os.fstat(self._file).st_size > self._size:
                os.ftruncate(self._file, self._size)  # remove the incomplete row
            if not self._failing:
                self._on_error(error)
            self._failing = True
            return
        self._size += len(data)
        self._waiting.clear()
        self._failing = False

    def close(self) -> int:
        """Write the pending rows, close the file, and return the number of lost rows."""
        self.retry()
        os.close(self._file)
        return len(self._waiting)


def read_rows(path: Path) -> list[Row]:
    """Read the complete lines of a metrics file; a killed process may leave an incomplete one.

    Raises:
        ValueError: a line is not a JSON object; the message names the file and the line.
    """
    if not path.exists():
        return []
    *lines, unfinished = path.read_bytes().split(b"\n")
    del unfinished  # empty, or the start of a line of a process that was killed
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({error}). Correct or delete that line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} must be a JSON object; got {line[:60]!r}. Correct or "
                f"delete that line"
            )
        rows.append(row)
    return rows


def remove_after(path: Path, update: int) -> tuple[list[Row], int]:
    """Remove the rows after an update, which a resumed run will write again.

    The new file replaces the old one atomically, so that a process that is killed meanwhile loses
    nothing.

    Returns:
        (the remaining rows, the number of removed rows).
    """
    rows = read_rows(path)
    kept = [row for row in rows if row.get("step", 0) <= update]
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(b"".join(_encoded(row) for row in kept))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return kept, len(rows) - len(kept)


def _encoded(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


class EventFiles:
    """Writer of TensorBoard scalars; a resumed run hides the updates that it will write again.

    Raises:
        ImportError: the extra is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard=True (--tensorboard) needs the package tensorboardX: pip install "
                "tensorboardX, or omit it: metrics.jsonl contains the same numbers"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def add(self, group: str, update: int, values: Mapping[str, Any]) -> None:
        """Add the numbers among the values as `group/name` at an update."""
        for name, value in values.items():
            if isinstance(value, int | float) and name not in ("step", "updates"):
                self._writer.add_scalar(f"{group}/{name}", value, update)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
