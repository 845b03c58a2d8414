"""Show a segment of the predictions of a run beside the truth, for its report."""

import csv
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import page
from experiments.support.train import report_figures

SHOWN = 400  # rows of a forecast or of a text
ALL = 1 << 26  # bytes of predictions that are read to count classes


def section(path: Path, task: Mapping[str, Any]) -> str:
    """Return the predictions as HTML; "" if there are none.

    Args:
        path: predictions.csv, with the columns row, truth, prediction; only a part of a large file
          is read.
        task: the value of "task" in config.json.

    Raises:
        ValueError: a column is missing; the message names the file.
    """
    if not path.exists():
        return ""
    kind = task.get("kind")
    several = f"_{task['horizon']}" if task.get("outputs", 1) > 1 else ""
    table, whole = _read(path, ALL if kind == "classify" else 64 * SHOWN * 4, several)
    scored = [row for row in table if row["truth" + several] != ""]
    if not scored:
        return ""
    if kind == "classify":
        truth, prediction = (
            np.array([_plain(row[name]) for row in scored]) for name in ("truth", "prediction")
        )
        note = "" if whole else " This is a part of them, from the middle of the file."
        body = f"<p>{len(scored):,} predictions on the test part.{note}</p>"
        return f"<h2>Predictions</h2>{body}" + page.image(
            report_figures.confusion(truth, prediction), "confusion matrix"
        )
    scored = scored[:SHOWN]
    if kind == "text":
        return "<h2>Predictions</h2>" + _text(scored)
    rows = np.array([int(row["row"]) for row in scored])
    truth, prediction = (
        np.array([float(row[name + several]) for row in scored]) for name in ("truth", "prediction")
    )
    picture = report_figures.forecasts(
        rows, truth, prediction, str(task.get("target", "")), int(task.get("horizon", 0))
    )
    return f"<h2>Predictions</h2><p>{len(scored)} rows of the test part.</p>" + page.image(
        picture, "prediction and truth"
    )


def _plain(number: str) -> str:
    """Return the shortest form of a number: "2" for "2.0"."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number


def _text(rows: list[dict[str, str]]) -> str:
    """Return symbols as HTML, with a darker background the less probable they were."""
    spans = []
    for row in rows:
        chance = float(row["p_truth"])
        bits = -np.log2(max(chance, 1e-9))
        shade = min(bits / 8, 1.0) * 0.75
        shown = row["truth"].encode("latin-1", "backslashreplace").decode("unicode_escape")
        shown = "⏎\n" if shown == "\n" else shown
        title = html.escape(f"{100 * chance:.1f} %; most likely: {row['prediction']}")
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


def _read(path: Path, most: int, several: str) -> tuple[list[dict[str, str]], bool]:
    """Read the rows of a file; of one larger than `most` bytes, only that many from its middle."""
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
    if missing := {"row", "truth" + several, "prediction" + several} - set(names):
        raise ValueError(
            f"{path} must have the columns row, truth, prediction; missing: "
            f"{', '.join(sorted(missing))}"
        )
    return list(csv.DictReader(io.StringIO(text.decode(), newline=""), fieldnames=names)), whole
