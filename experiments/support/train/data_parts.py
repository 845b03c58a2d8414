"""Describe the three parts of the data of a run, for summary.json and the report."""

from typing import Any

import numpy as np

from experiments.support.train.data import RunData
from experiments.support.train.row_labels import RowLabels
from tbptt.data import Source, part
from tbptt.data.tables.bad_samples import good_rows, times_of
from tbptt.data.tables.steps import shown
from tbptt.fit.progress import duration

BLOCK = 1 << 16  # rows read at once
RECORDINGS = 1000  # whose first and last time are read


def about_data(data: RunData) -> dict[str, Any]:
    """Return facts about the data of a run.

    parts        for each part its rows, recordings, rows left out for missing values (None if rows
                 with missing values are not masked), and its first and last time
    step         the usual step in time, as text, or None
    time_format  how the file writes its dates
    """
    edges = (0, *data.parts)
    named = zip(("training", "validation", "test"), edges[:-1], edges[1:], strict=True)
    parts = [{"part": name, **_part(part(data.source, start, stop))} for name, start, stop in named]
    return {
        "parts": parts,
        "step": _shown_step(RowLabels(data.source, (1,)).step),
        "time_format": getattr(data.source, "time_format", ""),
    }


def _part(rows: Source) -> dict[str, Any]:
    edges = np.cumsum((0, *rows.lengths))
    total, left_out = int(edges[-1]), None
    for at in range(0, total, BLOCK):
        good = good_rows(rows, at, min(at + BLOCK, total))
        left_out = None if good is None else (left_out or 0) + int((~good).sum())
    found = {"rows": total, "recordings": len(rows.lengths), "left_out": left_out}
    times = []
    for begin, end in zip(edges[:-1][:RECORDINGS], edges[1:], strict=False):
        for at in (begin, end - 1):
            one = times_of(rows, int(at), int(at) + 1)
            times += [] if one is None or np.isnan(one[0]) else [one[0]]
    return found | ({"first": shown(min(times)), "last": shown(max(times))} if times else {})


def _shown_step(step: Any) -> str | None:
    if step is None:
        return None
    if not isinstance(step, np.timedelta64):
        return f"{step:g}"
    seconds = step / np.timedelta64(1, "s")
    return duration(seconds) if seconds >= 1 else f"{seconds:g} s"
