"""The report of a run, finished or not: one HTML page, made from the files of its folder alone.

python -m experiments.support.train.report runs/train/2026-11-25_10-00-00       writes report.html there; trains nothing
"""

import html
import sys
from pathlib import Path
from typing import Any

from experiments.support.common import page
from experiments.support.common.json_file import read_config, read_object
from experiments.support.train import report_figures
from experiments.support.train import report_segment as report_stretch
from experiments.support.train.metrics_file import Row, read_rows
from experiments.support.train.progress_view import duration

HIGHER_IS_BETTER = ("accuracy",)
SHOWN_WARNINGS = 12


def write_report(folder: Path) -> Path:
    """Writes report.html into a run's folder (see run_log for what lies there) and returns its path.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        ValueError: a file of it is damaged; names it.
    """
    config = read_config(folder)
    summary = read_object(folder / "summary.json") if (folder / "summary.json").exists() else {}
    rows = read_rows(folder / "metrics.jsonl")
    train, valid, warnings = ([row for row in rows if row["kind"] == kind] for kind in ("train", "valid", "warning"))
    metric = summary.get("metric") or config.get("metric") or _metric_in(valid)
    task = config.get("task", {})
    body = [_state(train, summary), _headline(summary, valid, metric), _warnings(warnings)]
    body += [report_stretch.section(folder / "predictions.csv", task)]
    if train:
        body += ["<h2>Loss</h2>", page.image(report_figures.losses(train, valid, metric), "loss against updates")]
        clip = config.get("clip")
        body += ["<h2>Gradients</h2>", page.image(report_figures.gradients(train, clip), "gradient norm, share clipped")]
    body += [_commands(folder, config, summary), "<h2>Settings</h2>", _settings(config)]
    path = folder / "report.html"
    page.document(path, _title(task), [piece for piece in body if piece], _footer(folder, summary))
    return path


def _title(task: dict[str, Any]) -> str:
    if task.get("kind") == "forecast":
        ahead = f", {task['horizon']} rows ahead" if task["horizon"] else ""
        return f"Forecast of {task['target']}{ahead}"
    return {"classify": f"Classes of {task.get('target')}", "text": "The next symbol of a text"}.get(
        str(task.get("kind")), "Run"
    )


def _state(train: list[Row], summary: dict[str, Any]) -> str:
    if not train:
        return "<p>No update has been logged yet.</p>"
    last = train[-1]
    done = f"{last['step']:,} updates in {duration(last['seconds'])} of training"
    if summary and summary.get("updates", last["step"]) < last["step"]:
        tested = f"What was tested is the run up to update {summary['updates']:,}"
        return f"<p><b>Trained on after its end</b>: {done}. {tested}.</p>"
    if summary:
        return f"<p>Finished: {done}.</p>"
    return f"<p><b>Interrupted, or still running</b>: {done} so far. The test part has not been looked at.</p>"


def _headline(summary: dict[str, Any], valid: list[Row], metric: str) -> str:
    """Puts the metric and what it has to beat in large figures, and says in words which is better."""
    name = html.escape(report_figures.spoken(metric))
    if "test_metric" not in summary:
        known = [row for row in valid if metric and row.get(metric) is not None]
        if not known:
            return ""
        best = (max if metric in HIGHER_IS_BETTER else min)(known, key=lambda row: row[metric])
        return _big((_figure(best[metric]), f"best validation {name} so far, at update {best['step']:,}", ""))
    value, baseline = summary["test_metric"], summary.get("baseline")
    tiles = [(_figure(value), f"test {name}, this model", "")]
    if baseline is None:
        return _big(*tiles)
    what = html.escape(str(summary.get("baseline_name", "without a network")))
    tiles.append((_figure(baseline), f"test {name}, baseline: {what}", "other"))
    better = value is not None and (value > baseline if metric in HIGHER_IS_BETTER else value < baseline)
    if not better:
        verdict = "<p class=fails>Not better than the baseline.</p>"
    else:
        change = f"by {abs(value - baseline):.3g}"
        if metric not in HIGHER_IS_BETTER and baseline > 0:
            change += f", {1 - value / baseline:.0%} of it"
        verdict = f"<p class=holds>Better than the baseline {change}.</p>"
    return _big(*tiles) + verdict + _baselines(summary, name)


def _baselines(summary: dict[str, Any], metric: str) -> str:
    others = summary.get("baselines")
    return page.table(("baseline", f"test {metric}"), [(k, _figure(v)) for k, v in others.items()]) if others else ""


def _warnings(warnings: list[Row]) -> str:
    if not warnings:
        return "<p class=note>No warnings.</p>"
    pieces = [f"<h2>Warnings ({len(warnings)})</h2>"]
    for row in warnings[:SHOWN_WARNINGS]:
        text = f"<b>Update {row['step']:,}:</b> {html.escape(row['message'])}. {html.escape(row.get('advice', ''))}"
        pieces.append(f"<div class=warning>{text}</div>")
    more = len(warnings) - SHOWN_WARNINGS
    return "".join(pieces) + (f"<p class=note>And {more} more, in metrics.jsonl.</p>" if more > 0 else "")


def _commands(folder: Path, config: dict[str, Any], summary: dict[str, Any]) -> str:
    going_on = f"python -m experiments.train --resume {folder}"
    limit = next((name for name in ("epochs", "minutes") if config.get(name)), None) if summary else None
    going_on += f" --{limit} {2 * config[limit]:g}" if limit else ""
    predicting = f"python -m experiments.predict {folder} --data FILE --out predictions.csv"
    rows = [f"# predict with the best checkpoint, from a file with the same columns\n{predicting}"]
    rows.insert(1 if summary else 0, f"# {'train longer' if summary else 'go on where it stopped'}\n{going_on}")
    return f"<h2>How to go on</h2><pre>{html.escape(chr(10).join(rows))}</pre>"


def _settings(config: dict[str, Any]) -> str:
    """Lists the settings, and of the task what fits a line."""
    rows = [(name, _shown(value)) for name, value in config.items() if name != "task" and value is not None]
    rows += [(f"task: {name}", _shown(value)) for name, value in config.get("task", {}).items() if name != "kind"]
    return page.table((), rows)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        listed = ", ".join(_shown(item) for item in value[:20])
        return listed + (f", ... ({len(value)} in all)" if len(value) > 20 else "")
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _footer(folder: Path, summary: dict[str, Any]) -> str:
    where = summary.get("environment", {})
    machine = f" on {where['cpus']} CPU cores, {where['device']}, jax {where['jax']}, {where['date'][:10]}" if where else ""
    speed = f"; {summary['steps_per_second']:,.0f} steps/s" if summary.get("steps_per_second") else ""
    return f"{folder}{machine}{speed}. Made from the run's files alone."


def _metric_in(valid: list[Row]) -> str:
    return next((name for row in valid for name in row if name not in ("kind", "step", "seconds")), "")


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _big(*tiles: tuple[str, str, str]) -> str:
    return "<div class=big>" + "".join(f'<div class="{c}"><b>{v}</b><span>{t}</span></div>' for v, t, c in tiles) + "</div>"


if __name__ == "__main__":
    try:
        print(write_report(Path(sys.argv[1])))
    except (IndexError, FileNotFoundError, ValueError) as error:
        sys.exit("report: give the run's folder" if isinstance(error, IndexError) else f"report: {error}")
