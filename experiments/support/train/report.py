"""Write the report of a run, finished or not: one HTML page, made from the files of its folder.

python -m experiments.support.train.report runs/train/2026-11-25_10-00-00   writes report.html
"""

import html
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import page
from experiments.support.common.json_file import read_config, read_object
from experiments.support.train import report_data, report_figures, report_predictions
from tbptt.fit.metrics_file import Row, read_rows
from tbptt.fit.progress import duration

HIGHER_IS_BETTER = ("accuracy",)
SHOWN_WARNINGS = 12


def write_report(folder: Path) -> Path:
    """Write report.html into the folder of a run, from its other files, and return its path.

    Raises:
        FileNotFoundError: the folder has no config.json.
        ValueError: a file is damaged; the message names it.
    """
    config = read_config(folder)
    summary = read_object(folder / "summary.json") if (folder / "summary.json").exists() else {}
    rows = read_rows(folder / "metrics.jsonl")
    train, valid, warnings = (
        [row for row in rows if row["kind"] == kind] for kind in ("train", "valid", "warning")
    )
    metric = summary.get("metric") or config.get("metric") or _metric_in(valid)
    task = config.get("task", {})
    body = [_state(train, summary), _headline(summary, valid, metric, task)]
    predictions = folder / "predictions.csv"
    body += [_horizons(summary, task)]
    body += [report_predictions.section(predictions, task, summary.get("time_format", ""))]
    body += [_warnings(warnings), report_data.section(config, summary)]
    if train:
        body += ["<h2>Training</h2>", _losses(train, valid, metric, task, summary)]
        body.append(_gradients(train, config.get("clip")))
    body += [_commands(folder, config, summary), report_data.settings(config)]
    path = folder / "report.html"
    page.document(path, _title(task), [part for part in body if part], _footer(folder, summary))
    return path


def _title(task: dict[str, Any]) -> str:
    if task.get("kind") == "forecast":
        first, last = task["horizon"] // task.get("outputs", 1), task["horizon"]
        if not last:
            return f"Estimate of {task['target']} from other columns"
        several = f"{first} to {last}" if first < last else str(last)
        return f"Forecast of {task['target']}, {several} row{'s' * (last > 1)} ahead"
    return {
        "classify": f"Classification by {task.get('target')}",
        "text": "Prediction of the next character",
    }.get(str(task.get("kind")), "Run")


def _state(train: list[Row], summary: dict[str, Any]) -> str:
    if not train:
        return "<p>No update has been logged yet.</p>"
    last = train[-1]
    done = f"{last['step']:,} updates in {duration(last['seconds'])} of training"
    if summary and summary.get("updates", last["step"]) < last["step"]:
        tested = f"The test results are those after update {summary['updates']:,}"
        return f"<p><b>Resumed after the test</b>: {done}. {tested}.</p>"
    if summary:
        return f"<p>Finished: {done}.</p>"
    text = f"{done} so far. The test part has not been evaluated."
    return f"<p><b>Interrupted or still running</b>: {text}</p>"


def _headline(summary: dict[str, Any], valid: list[Row], metric: str, task: dict[str, Any]) -> str:
    """Show the metric and the best baseline in large digits, and compare them."""
    name = html.escape(report_figures.display_name(metric))
    unit = html.escape(f", in units of {task.get('target')}") if metric == "rmse" else ""
    if f"test_{metric}" not in summary:
        scored = [row for row in valid if metric and row.get(metric) is not None]
        if not scored:
            return ""
        best = (max if metric in HIGHER_IS_BETTER else min)(scored, key=lambda row: row[metric])
        return _big(
            (
                _figure(best[metric]),
                f"best validation {name} so far, at update {best['step']:,}{unit}",
                "",
            )
        )
    what = str(summary.get("baseline"))
    value = summary[f"test_{metric}"]
    baseline = summary.get("baselines", {}).get(what, {}).get(metric)
    tiles = [(_figure(value), f"test {name}, this model{unit}", "")]
    if baseline is None:
        return _big(*tiles)
    tiles.append((_figure(baseline), f"test {name}, baseline: {html.escape(what)}{unit}", "other"))
    better = value is not None and (
        value > baseline if metric in HIGHER_IS_BETTER else value < baseline
    )
    if not better:
        verdict = "<p class=fails>Not better than the baseline.</p>"
    else:
        change = f"by {abs(value - baseline):.3g}"
        if metric not in HIGHER_IS_BETTER and baseline > 0:
            change += f" ({1 - value / baseline:.0%})"
        verdict = f"<p class=holds>Better than the baseline {change}.</p>"
    return _big(*tiles) + verdict + _baselines(summary, metric)


def _baselines(summary: dict[str, Any], metric: str) -> str:
    """Return the errors of the model and of every baseline, the best first."""
    names = [n for n in (metric, "mae", "standardised_rmse") if f"test_{n}" in summary]
    errors = {"this model": {name: summary[f"test_{name}"] for name in names}}
    errors |= summary["baselines"]
    order = sorted(
        errors,
        key=lambda key: errors[key].get(metric) or 0,
        reverse=metric in HIGHER_IS_BETTER,
    )
    rows = [
        ("→ " * (key == "this model") + key, *(_figure(errors[key].get(name)) for name in names))
        for key in order
    ]
    header = [f"test {report_figures.display_name(name)}" for name in names]
    note = ""
    if "standardised_rmse" in names:
        note = (
            "<p class=note>RMSE: root of the mean squared error. MAE: mean absolute error. "
            "Standardised: divided by the standard deviation of the target in the training part; "
            "predicting its mean has an error of about 1.</p>"
        )
    return page.table(("model", *header), rows) + note


def _horizons(summary: dict[str, Any], task: dict[str, Any]) -> str:
    """Draw the error of the model and of baselines by horizon; "" for one horizon."""
    rows = summary.get("horizons") or []
    if len(rows) < 2:
        return ""
    names = [
        "rmse",
        *(name for name in rows[0] if name not in ("horizon", "rmse", "mae", "scored")),
    ]
    x = np.array([row["horizon"] for row in rows])
    lines = []
    for i, name in enumerate(names):
        y = np.array([np.nan if row[name] is None else row[name] for row in rows])
        lines.append(report_figures.Line("this model" if name == "rmse" else name, x, y, i))
    best = np.nanmin(np.stack([line.y for line in lines[1:]]), axis=0)
    better = int(np.sum(lines[0].y < best))
    ylabel = f"test RMSE ({task['target']})"
    step = f" (1 row = {summary['step']})" if summary.get("step") else ""
    picture = page.picture(
        lambda width: report_figures.by_horizon(lines, ylabel, "rows ahead" + step, width),
        "error against horizon",
    )
    text = f"<p>Better than all of these baselines at {better} of {len(rows)} horizons.</p>"
    return f"<h2>Error by horizon</h2>{text}{picture}"


def _losses(
    train: list[Row],
    valid: list[Row],
    metric: str,
    task: dict[str, Any],
    summary: dict[str, Any],
) -> str:
    """Draw the loss, and mark the best checkpoint, the one that is or would be tested."""
    chosen = int(summary["checkpoint"].rpartition("_")[2]) if "checkpoint" in summary else None
    scored = [row for row in valid if row.get("metric") is not None]
    if chosen is None and scored:
        chosen = min(scored, key=lambda row: row["metric"])["step"]
    scale = task.get("target_scale") if metric == "rmse" else None
    picture = page.picture(
        lambda width: report_figures.losses(train, valid, metric, scale, chosen, width),
        "loss against updates",
    )
    text = "The axis of the loss is logarithmic."
    if chosen == 0:
        text += (
            " The linear forecast before the first update has the best validation: training did "
            "not improve it."
        )
    elif chosen is not None:
        text += f" The checkpoint with the best validation, after update {chosen:,}, is tested."
    if scale is not None:
        text += (
            f" The loss is the squared error divided by the variance of {task['target']}. "
            "Predicting the mean has a loss of about 1, "
            f"an RMSE of {report_figures.short_number(scale)} in units of {task['target']}."
        )
    return f"<p>{html.escape(text)}</p>{picture}"


def _gradients(train: list[Row], clip: float | None) -> str:
    picture = page.picture(
        lambda width: report_figures.gradients(train, clip, width), "gradient norm, clipped"
    )
    return f"<details><summary>Gradients</summary>{picture}</details>"


def _warnings(warnings: list[Row]) -> str:
    if not warnings:
        return "<p class=note>No warnings.</p>"
    parts = [f"<h2>Warnings ({len(warnings)})</h2>"]
    for row in warnings[:SHOWN_WARNINGS]:
        text = "; ".join(html.escape(row[name]) for name in ("message", "advice") if row.get(name))
        parts.append(f"<div class=warning><b>Update {row['step']:,}:</b> {text}.</div>")
    more = len(warnings) - SHOWN_WARNINGS
    return "".join(parts) + (
        f"<p class=note>And {more} more in metrics.jsonl.</p>" if more > 0 else ""
    )


def _commands(folder: Path, config: dict[str, Any], summary: dict[str, Any]) -> str:
    resume = f"python -m experiments.train --resume {folder}"
    limit = (
        next((name for name in ("epochs", "minutes") if config.get(name)), None)
        if summary
        else None
    )
    # Without --patience 0 a run that ended early would end again at once.
    resume += f" --{limit} {2 * config[limit]:g} --patience 0" if limit else ""
    predict = f"python -m experiments.predict {folder} --data FILE --out predictions.csv"
    rows = [f"# predict with the best checkpoint, for a file with the same columns\n{predict}"]
    rows.insert(
        1 if summary else 0, f"# {'train longer' if summary else 'resume the run'}\n{resume}"
    )
    return f"<h2>Next steps</h2><pre>{html.escape(chr(10).join(rows))}</pre>"


def _footer(folder: Path, summary: dict[str, Any]) -> str:
    where = summary.get("environment", {})
    machine = (
        f" on {where['cpus']} CPU cores, {where['device']}, jax {where['jax']}, "
        f"{where['date'][:10]}"
        if where
        else ""
    )
    speed = (
        f"; {summary['time_steps_per_second']:,.0f} steps/s"
        if summary.get("time_steps_per_second")
        else ""
    )
    return f"{folder}{machine}{speed}."


def _metric_in(valid: list[Row]) -> str:
    return next(
        (name for row in valid for name in row if name not in ("kind", "step", "seconds")), ""
    )


def _figure(value: float | None) -> str:
    return "not finite" if value is None else report_figures.short_number(value)


def _big(*tiles: tuple[str, str, str]) -> str:
    return (
        "<div class=big>"
        + "".join(f'<div class="{c}"><b>{v}</b><span>{t}</span></div>' for v, t, c in tiles)
        + "</div>"
    )


if __name__ == "__main__":
    try:
        print(write_report(Path(sys.argv[1])))
    except (IndexError, FileNotFoundError, ValueError) as error:
        sys.exit(
            "report: give the folder of a run"
            if isinstance(error, IndexError)
            else f"report: {error}"
        )
