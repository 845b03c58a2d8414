"""Columns that identify predictions: group, time, and the times that are predicted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tbptt.data.tables.bad_samples import times_of

SAMPLE = 1 << 16  # number of last rows whose steps in time give the median step
REGULAR = 0.9  # fraction of steps that must equal the median for times beyond the last row


class RowLabels:
    """Columns by which predictions are joined to the file.

        time             time of the row
        group            group of the row; group_1, group_2, ... for groups by several columns
        target_time(h)   time of row + h; beyond the recording, its last time + missing rows * step

    step is the median step. If fewer than 9 of 10 steps equal it (months, working days), times
    beyond the recording are missing values.

    Args:
        source: the rows; without `times` or `groups` there are no such columns.
        horizons: numbers of rows ahead, ascending; () for classes and symbols.

    Attributes:
        step: the median step in time; None without times, or if the steps are irregular.
    """

    def __init__(self, source: Any, horizons: Sequence[int]) -> None:
        self._source, self._horizons = source, tuple(horizons)
        self._edges = np.cumsum((0, *source.lengths))
        groups = getattr(source, "groups", ())  # of each a text, or a tuple of texts
        self._groups = np.asarray(groups, str).reshape(len(groups), -1 if len(groups) else 0)
        self._timed = times_of(source, 0, min(1, self._edges[-1])) is not None
        self.step = self._usual_step() if self._timed and max(self._horizons, default=0) else None

    def columns(self, start: int, stop: int) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Return the columns of rows [start, stop), and the target times by horizon."""
        at, found, targets = np.arange(start, stop), {}, []
        recording = np.searchsorted(self._edges, at, side="right") - 1
        if self._timed:
            upto = min(stop + max(self._horizons, default=0), int(self._edges[-1]))
            times, ends = self._source.times(start, upto), self._edges[recording + 1]
            found["time"] = times[: stop - start]
            for horizon in self._horizons:
                row = np.minimum(at + horizon, ends - 1)
                targets.append(self._continued(times[row - start], at + horizon - row))
        several = self._groups.shape[1] > 1
        for i, groups in enumerate(self._groups.T):
            found[f"group_{i + 1}" if several else "group"] = groups[recording]
        return found, targets

    def _continued(self, times: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the times `rows` rows later, by the median step."""
        if self.step is None:
            nothing = np.array("NaT" if times.dtype.kind == "M" else np.nan, times.dtype)
            return np.where(rows > 0, nothing, times)
        return times + rows * self.step

    def _usual_step(self) -> Any:
        """Return the median step of the last rows; None without steps, or if too few equal it."""
        total = int(self._edges[-1])
        start = max(0, total - SAMPLE)
        steps = np.diff(self._source.times(start, total))
        inner = self._edges[(self._edges > start) & (self._edges < total)] - start - 1
        steps = np.delete(steps, inner)
        steps = steps[~np.isnan(steps)]
        if not len(steps):
            return None
        usual = np.sort(steps)[len(steps) // 2]
        near = np.abs(steps - usual) <= usual * 1e-6
        return usual if near.mean() >= REGULAR and usual > usual * 0 else None
