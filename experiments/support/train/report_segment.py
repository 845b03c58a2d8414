"""A stretch of a run's predictions beside the truth, for its report: a figure, or a piece of text."""

import csv
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import page
from experiments.support.train import report_figures

STRETCH = 400  # rows of a forecast or of a text that are shown
ALL = 1 << 26  # bytes of predictions that are read to count classes


def section(path: Path, task: Mapping[str, Any]) -> str:
    """Returns the predictions as a piece of HTML; "" if there are none.

    Args:
        path: predictions.csv, with the columns row, truth, prediction (see run_log); of a large file only a part is read.
        task: what stands under "task" in config.json.

    Raises:
        ValueError: a column is missing; names the file.
    """
    if not path.exists():
        return ""
    kind = task.get("kind")
    table, whole = _read(path, ALL if kind == "classify" else 64 * STRETCH * 4)
    known = [row for row in table if row["truth"] != ""]
    if not known:
        return ""
    if kind == "classify":
        truth, prediction = (np.array([_plain(row[name]) for row in known]) for name in ("truth", "prediction"))
        note = "" if whole else " A part of them, from the middle of the file."
        body = f"<p>{len(known):,} predictions on the test part.{note}</p>"
        return f"<h2>Predictions</h2>{body}" + page.image(
            report_figures.confusion(truth, prediction), "which class for which"
        )
    known = known[:STRETCH]
    if kind == "text":
        return "<h2>Predictions</h2>" + _text(known)
    rows = np.array([int(row["row"]) for row in known])
    truth, prediction = (np.array([float(row[name]) for row in known]) for name in ("truth", "prediction"))
    picture = report_figures.forecasts(rows, truth, prediction, str(task.get("target", "")), int(task.get("horizon", 0)))
    return f"<h2>Predictions</h2><p>{len(known)} rows of the test part.</p>" + page.image(picture, "prediction and truth")


def _plain(number: str) -> str:
    """Writes a class one way: 2.0 is 2."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number


def _text(rows: list[dict[str, str]]) -> str:
    """Shows symbols on a ground that is the darker, the less they were expected."""
    pieces = []
    for row in rows:
        chance = float(row["p_truth"])
        bits = -np.log2(max(chance, 1e-9))
        shade = min(bits / 8, 1.0) * 0.75
        shown = row["truth"].encode("latin-1", "backslashreplace").decode("unicode_escape")
        shown = "⏎\n" if shown == "\n" else shown
        told = html.escape(f"{100 * chance:.1f} %; likeliest: {row['prediction']}")
        pieces.append(f'<span style="background: rgba(213, 94, 0, {shade:.2f})" title="{told}">{html.escape(shown)}</span>')
    note = (
        "The darker a symbol's ground, the less it was expected: white is certain, full colour 8 bits of surprise or more."
    )
    return f"<p>{len(rows)} symbols of the test part. {note} (The pointer shows the chance it was given.)</p>" + (
        f"<p class=text>{''.join(pieces)}</p>"
    )


def _read(path: Path, most: int) -> tuple[list[dict[str, str]], bool]:
    """Reads the rows of a part of the file, from its middle on if it is larger than `most` bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.readline()
        if size > most + len(header):
            file.seek((size - most) // 2)
            file.readline()  # the rest of a row that began before
        text = file.read(most)
    whole = size <= most + len(header)
    text = text if whole else text[: text.rfind(b"\n") + 1]
    names = next(csv.reader([header.decode()]), [])
    if missing := {"row", "truth", "prediction"} - set(names):
        raise ValueError(f"{path} must have the columns row, truth, prediction; it lacks {', '.join(sorted(missing))}")
    return list(csv.DictReader(io.StringIO(text.decode(), newline=""), fieldnames=names)), whole
