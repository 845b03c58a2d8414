"""Show which data a run used, what was left out of it and why, and its settings."""

import html
from collections.abc import Mapping
from typing import Any

from experiments.support.common import page

# What a reader wants to know first; the rest is in a list that opens on a click.
MAIN = (
    "data", "target", "horizon", "forecasts", "columns", "without", "group", "missing", "gaps",
    "cell", "hidden", "layers", "estimator", "k1", "k2", "batch", "lr", "epochs", "minutes",
    "patience", "seeds", "seed",
)  # fmt: skip
SHOWN = 20  # notes
NO_BREAK = "\u2011"  # a hyphen at which a line does not end


def section(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return the parts of the data and what was left out of them, as HTML; "" if unknown."""
    parts, notes = summary.get("parts", {}), config.get("notes", [])
    if not parts and not notes:
        return ""
    body = "<h2>Data</h2>"
    task = config.get("task", {})
    if task.get("columns"):
        columns, target = _shown(task["columns"]), task["target"]
        unseen = task["kind"] == "forecast" and target not in task["columns"]
        kind = " The target is not an input." if unseen else ""
        body += f"<p>Inputs: {html.escape(columns)}. Target: {html.escape(target)}.{kind}</p>"
    if parts:
        left_out, times = summary.get("left_out") or {}, summary.get("times") or {}
        rows = [
            (
                name,
                " to ".join(times.get(name, ())).replace("-", NO_BREAK),
                str(left_out.get(name, "")),
                words,
            )
            for name, words in parts.items()
        ]
        header = ("part", "time", "rows left out for missing values", "rows")
        kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
        body += page.table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])
    if notes:
        listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes[:SHOWN])
        more = f"<p class=note>And {len(notes) - SHOWN} more.</p>" if len(notes) > SHOWN else ""
        body += f"<p>How the files were read, and what was left out:</p><ul>{listed}</ul>{more}"
    return body


def settings(config: Mapping[str, Any]) -> str:
    """Return the settings as HTML, the main ones first, and the fields of the task."""
    given = {name: value for name, value in config.items() if value not in (None, [], "")}
    hidden = ("task", "notes", "chosen")
    rows = [(name, _shown(given[name])) for name in MAIN if name in given]
    rest = [(name, _shown(value)) for name, value in given.items() if name not in (*MAIN, *hidden)]
    rest += [
        (f"task: {name}", _shown(value))
        for name, value in config.get("task", {}).items()
        if name != "kind"
    ]
    more = f"<details><summary>All settings</summary>{page.table((), rest)}</details>"
    chosen = "".join(f"<li>{html.escape(line)}</li>" for line in config.get("chosen", ()))
    chosen = f"<p>Chosen from the data:</p><ul>{chosen}</ul>" if chosen else ""
    return f"<h2>Settings</h2>{chosen}{page.table((), rows)}{more}"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        listed = ", ".join(_shown(item) for item in value[:20])
        return listed + (f", ... ({len(value)} in total)" if len(value) > 20 else "")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
