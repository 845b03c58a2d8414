"""Show the predictions of a run beside the true values, for its report."""

import csv
import html
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.support.common import page
from experiments.support.train import report_figures
from experiments.support.train.report_figures import Line
from tbptt.data.tables.recordings import time_text

SHOWN = 400  # symbols of a text
MOST_ROWS = 200  # most rows of a segment of forecasts
MOST = 1 << 25  # most bytes of predictions that are read, from the middle of the file


def section(path: Path, task: Mapping[str, Any], time_format: str = "") -> str:
    """Return the predictions as HTML; "" if there are none.

    Args:
        path: predictions.csv; only a part of a large file is read.
        task: the value of "task" in config.json.
        time_format: how its dates are written.

    Raises:
        ValueError: a column is missing; the message names the file.
    """
    if not path.exists():
        return ""
    kind = task.get("kind")
    if kind == "forecast":
        return _forecasts(path, task, time_format)
    names, rows, whole = _read(path, MOST if kind == "classify" else 64 * SHOWN * 4)
    wanted = ("row", "truth", "prediction", *(("p_truth",) if kind == "text" else ()))
    place = _places(path, names, wanted)
    scored = [row for row in rows if row[place["truth"]] != ""]
    if not scored:
        return ""
    if kind == "text":
        chosen = [place[name] for name in ("truth", "prediction", "p_truth")]
        return "<h2>Predictions</h2>" + _text(
            [tuple(row[i] for i in chosen) for row in scored[:SHOWN]]
        )
    truth, prediction = (
        np.array([_plain(row[place[name]]) for row in scored]) for name in ("truth", "prediction")
    )
    note = "" if whole else " This is a part of them, from the middle of the file."
    body = f"<p>{len(scored):,} predictions on the test part.{note}</p>"
    return f"<h2>Predictions</h2>{body}" + page.picture(
        lambda width: report_figures.confusion(truth, prediction, width), "confusion matrix"
    )


class Forecasts(NamedTuple):
    """Forecasts whose target at the shortest horizon is known.

    origin: `[n]` time of the row, or its number
    at:     `[n, K]` time of each target, or its row
    truth, prediction: `[n, K]`; NaN where the truth is unknown
    groups: `[n]`, or None
    whole:  whether these are all rows of the file
    """

    origin: np.ndarray
    at: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    groups: np.ndarray | None
    whole: bool


def read_forecasts(path: Path, task: Mapping[str, Any], time_format: str) -> Forecasts:
    """Read predictions.csv, or the middle of a large one."""
    K, horizon = task.get("outputs", 1), task["horizon"]
    horizons = [(i + 1) * horizon // K for i in range(K)]
    ends = [f"_{h}" if K > 1 else "" for h in horizons]
    names, rows, whole = _read(path, MOST)
    wanted = ["row", *(what + end for end in ends for what in ("truth", "prediction"))]
    if "time" in names:
        wanted += ["target_time" + end for end in ends]
    places = _places(path, names, wanted)
    truths = [places["truth" + end] for end in ends]
    scored = [row for row in rows if any(row[place] for place in truths)]
    columns = list(zip(*scored, strict=True)) or [()] * len(names)

    def column(name: str) -> tuple[str, ...]:
        return columns[names.index(name)]

    def numbers(what: str) -> np.ndarray:
        found = [np.array([float(v or "nan") for v in column(what + end)]) for end in ends]
        return np.stack(found, axis=1)

    truth, prediction = numbers("truth"), numbers("prediction")
    origin = np.array([int(row) for row in column("row")])
    at = origin[:, None] + horizons
    if "time" in names:
        origin = _times(column("time"), time_format)
        at = np.stack([_times(column("target_time" + end), time_format) for end in ends], axis=1)
    parts = [column(name) for name in names if name.startswith("group")]
    groups = np.array([", ".join(one) for one in zip(*parts, strict=True)]) if parts else None
    return Forecasts(origin, at, truth, prediction, groups, whole)


def _forecasts(path: Path, task: Mapping[str, Any], time_format: str) -> str:
    found = read_forecasts(path, task, time_format)
    if not len(found.truth):
        return ""
    part = "" if found.whole else " from the middle of the test part, which is larger"
    text = f"<h2>Predictions</h2><p>{len(found.truth):,} rows{part}. "
    segments = _segments(found)
    if not segments:
        return ""
    squares = np.nanmean((found.prediction - found.truth) ** 2, axis=1)  # one is known
    errors = [np.sqrt(np.nanmean(squares[segment])) for segment in segments]
    if len(segments) > 1:
        middle = int(np.argsort(errors)[len(errors) // 2])
        chosen = {"Typical": segments[middle], "Worst": segments[int(np.argmax(errors))]}
        rows = segments[0].stop - segments[0].start
        text += (
            f"Of {len(segments)} segments of {rows} rows, the one with the median error is "
            "typical. Both panels have the same vertical scale."
        )
    else:
        chosen = {"All": segments[0]}
    named = [(name, _title(name, found, segment, squares)) for name, segment in chosen.items()]
    horizons = sorted({0, found.truth.shape[1] - 1})
    per = task["horizon"] // task.get("outputs", 1)

    def lines(segment: slice) -> list[Line]:
        curves = [Line("truth", found.at[segment, -1], found.truth[segment, -1])]
        for style, i in enumerate(horizons):
            ahead = (i + 1) * per
            label = f"prediction, {_rows(ahead)} ahead" if ahead else "estimate"
            rows = _predicting(found, segment, i)
            curves.append(Line(label, found.at[rows, i], found.prediction[rows, i], style))
        return curves

    panels = [(title, lines(chosen[name])) for name, title in named]
    dated = found.at.dtype.kind == "M"
    axis = "" if dated else ("time" if found.origin.dtype.kind == "f" else "row of the data")
    picture = page.picture(
        lambda width: report_figures.segments(panels, str(task["target"]), axis, width),
        "predictions and truth in a typical and in the worst segment",
    )
    return text + "</p>" + picture + _by_group(found, squares)


def _predicting(found: Forecasts, segment: slice, i: int) -> np.ndarray:
    """Return the rows whose times at horizon i are those of a segment at the longest horizon."""
    first, last = found.at[segment.start, -1], found.at[segment.stop - 1, -1]
    rows = (found.at[:, i] >= first) & (found.at[:, i] <= last)
    if found.groups is not None:
        rows &= found.groups == found.groups[segment.start]
    return np.flatnonzero(rows)


def _title(name: str, found: Forecasts, segment: slice, squares: np.ndarray) -> str:
    group = "" if found.groups is None else f" of group {found.groups[segment.start]}"
    error = np.sqrt(np.nanmean(squares[segment]))
    first = found.at[segment.start, -1]
    since = "" if first.dtype.kind == "i" else f", from {time_text(first)}"
    title = f"{name}{' segment' if name != 'All' else ''}{group}{since}"
    return f"{title}: RMSE {report_figures.short_number(error)}"


def _segments(found: Forecasts) -> list[slice]:
    """Return segments of equal length that do not leave their group, half overlapping."""
    n = len(found.truth)
    groups = np.zeros(n) if found.groups is None else found.groups
    starts = [0, *(np.flatnonzero(groups[1:] != groups[:-1]) + 1), n]
    known, spans = ~np.isnan(found.truth[:, -1]), []
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        inside = np.flatnonzero(known[begin:end])
        spans += [(int(begin), int(begin + inside[-1] + 1))] if len(inside) else []
    longest = max((end - begin for begin, end in spans), default=0)
    size = min(MOST_ROWS, max(longest // 4, min(longest, 48)))
    return [
        slice(at, at + size)
        for begin, end in spans
        for at in range(begin, end - size + 1, max(size // 2, 1))
    ]


def _by_group(found: Forecasts, squares: np.ndarray) -> str:
    """Return the error of each group, the largest first; "" for one group."""
    if found.groups is None or len(set(found.groups.tolist())) < 2:
        return ""
    rows = [
        (group, np.sqrt(np.nanmean(squares[found.groups == group])), (found.groups == group).sum())
        for group in dict.fromkeys(found.groups.tolist())
    ]
    rows.sort(key=lambda row: -row[1])
    table = [
        (group, report_figures.short_number(error), f"{count:,}")
        for group, error, count in rows[:12]
    ]
    more = f"<p class=note>And {len(rows) - 12} groups with less.</p>" if len(rows) > 12 else ""
    return "<h2>By group</h2>" + page.table(("group", "test RMSE", "rows"), table) + more


def _rows(n: int) -> str:
    return f"{n} row{'' if n == 1 else 's'}"


def _times(cells: tuple[str, ...], time_format: str) -> np.ndarray:
    """Return times as dates, or as numbers where the file has numbers; missing ones as NaT, NaN."""
    try:
        return np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        import polars as pl

        format = time_format or "%Y-%m-%d %H:%M:%S%.f"
        text = pl.Series(cells, dtype=pl.String)
        return text.str.to_datetime(format, strict=False, time_unit="us").to_numpy()


def _plain(number: str) -> str:
    """Return the shortest form of a number: "2" for "2.0"."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number


def _text(rows: list[tuple[str, ...]]) -> str:
    """Return symbols as HTML; less probable ones have a darker background."""
    spans = []
    for truth, prediction, p_truth in rows:
        chance = float(p_truth)
        bits = -np.log2(max(chance, 1e-9))
        shade = min(bits / 8, 1.0) * 0.75
        shown = truth.encode("latin-1", "backslashreplace").decode("unicode_escape")
        shown = "⏎\n" if shown == "\n" else shown
        title = html.escape(f"{100 * chance:.1f} %; most likely: {prediction}")
        color = f"rgba(213, 94, 0, {shade:.2f})"
        spans.append(
            f'<span style="background: {color}" title="{title}">{html.escape(shown)}</span>'
        )
    note = (
        "The background is darker the lower the probability of a symbol: white is probability 1, "
        "full colour 1/256 or "
        "less (8 bits). Hover over a symbol for its probability."
    )
    return f"<p>{len(rows)} symbols of the test part. {note}</p><p class=text>{''.join(spans)}</p>"


def _places(path: Path, names: list[str], wanted: Iterable[str]) -> dict[str, int]:
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(
            f"{path} must have the columns {', '.join(wanted)}; missing: {', '.join(missing)}"
        )
    return {name: names.index(name) for name in wanted}


def _read(path: Path, most: int) -> tuple[list[str], list[list[str]], bool]:
    """Read the rows of a file; of a file larger than `most` bytes, `most` bytes of its middle."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.readline()
        if size > most + len(header):
            file.seek((size - most) // 2)
            file.readline()  # skip the rest of an incomplete row
        text = file.read(most)
    whole = size <= most + len(header)
    text = text if whole else text[: text.rfind(b"\n") + 1]
    names = next(csv.reader([header.decode()]), [])
    rows: Iterator[list[str]] = csv.reader(io.StringIO(text.decode(), newline=""))
    return names, list(rows), whole
