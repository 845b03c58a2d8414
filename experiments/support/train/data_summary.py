"""Describe the three parts of the data of a run, for summary.json and the report."""

from typing import Any

import numpy as np

from experiments.support.train.data import RunData
from experiments.support.train.row_labels import RowLabels
from tbptt.data import Source, part
from tbptt.data.tables.bad_samples import good_rows, times_of
from tbptt.data.tables.recordings import time_span, time_text

BLOCK = 1 << 16  # rows read at once
RECORDINGS = 1000  # recordings whose first and last time are read


def about_data(data: RunData) -> dict[str, Any]:
    """Return facts about the data of a run.

    parts        by part, a description of its rows
    left_out     by part, the number of rows that are masked because of missing values; None if the
                 source has no mask
    times        by part, its first and last time; None without times
    step         the median step in time, as text; None if steps are irregular
    time_format  the format of the dates in the file
    """
    edges = (0, *data.ends)
    parts = {
        name: part(data.source, start, stop)
        for name, start, stop in zip(data.descriptions, edges[:-1], edges[1:], strict=True)
    }
    left_out = {name: _left_out(rows) for name, rows in parts.items()}
    times = {name: _first_and_last(rows) for name, rows in parts.items()}
    return {
        "parts": data.descriptions,
        "left_out": None if None in left_out.values() else left_out,
        "times": None if None in times.values() else times,
        "step": _shown_step(RowLabels(data.source, (1,)).step),
        "time_format": getattr(data.source, "time_format", ""),
    }


def _left_out(rows: Source) -> int | None:
    total, left_out = sum(rows.lengths), None
    for at in range(0, total, BLOCK):
        good = good_rows(rows, at, min(at + BLOCK, total))
        left_out = None if good is None else (left_out or 0) + int((~good).sum())
    return left_out


def _first_and_last(rows: Source) -> list[str] | None:
    edges, times = np.cumsum((0, *rows.lengths)), []
    for begin, end in zip(edges[:-1][:RECORDINGS], edges[1:], strict=False):
        for at in (begin, end - 1):
            one = times_of(rows, int(at), int(at) + 1)
            times += [] if one is None or np.isnan(one[0]) else [one[0]]
    return [time_text(min(times)), time_text(max(times))] if times else None


def _shown_step(step: Any) -> str | None:
    if step is None:
        return None
    if not isinstance(step, np.timedelta64):
        return f"{step:g}"
    return time_span(float(step / np.timedelta64(1, "s")))
