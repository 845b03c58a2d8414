"""Finish a run: select and test the best checkpoint and seed, and write the report."""

import json
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tbptt
from experiments.support.common import run_folder
from experiments.support.common.console import console
from experiments.support.common.json_file import finite_or_none
from experiments.support.train import result as run_result
from experiments.support.train.data import RunData
from experiments.support.train.processes import is_first, print_line
from experiments.support.train.result import checkpoint_metric
from experiments.support.train.setup import Setup, params_of
from tbptt.checkpoints import Checkpoints
from tbptt.fit.metrics_file import Row, read_rows


def write_report(folder: Path) -> Path:
    """Write the report; its figures import matplotlib, which takes a second."""
    from experiments.support.train import report

    return report.write_report(folder)


def best_seed(
    config: Any, data: RunData, setup: Setup, state: tbptt.TrainState
) -> tuple[dict[str, float], int, Any]:
    """Score every seed on the validation part.

    Returns:
      `(errors, index, parameters)` of the best seed; in other processes than the first, none.
    """
    if not is_first():
        return {}, 0, None
    params = params_of(state, config.seeds)
    first, stop = data.ends.train, data.ends.valid
    scores = [
        run_result.score_rows(data, setup.model, one, first, stop, config.k2).result()
        for one in params
    ]
    ranked = [
        float("inf") if (value := checkpoint_metric(one)) is None else value for one in scores
    ]
    best = ranked.index(min(ranked))
    return scores[best], best, params[best]


def time_steps_per_second(rows: list[Row]) -> float | None:
    """Return the median over the log lines; none of them includes compilation."""
    rates = [row["time_steps_per_second"] for row in rows if row["kind"] == "train"]
    return round(statistics.median(rates), 1) if rates else None


def finish(
    config: Any,
    data: RunData,
    setup: Setup,
    folder: Path,
    checkpoints: Checkpoints,
    state: tbptt.TrainState,
) -> dict[str, Any]:
    """Test the best checkpoint and write predictions, summary and report.

    Without a checkpoint that has a metric, test the last state.
    """
    best = checkpoints.best(state)
    used = state if best is None else best.state
    if not is_first():
        return {"folder": str(folder)}
    valid, seed, params = best_seed(config, data, setup, used)
    more = {
        **{f"valid_{name}": finite_or_none(value) for name, value in valid.items()},
        "updates": int(np.max(jax.device_get(state.step))),
        "time_steps_per_second": time_steps_per_second(read_rows(folder / "metrics.jsonl")),
        "seed": seed if config.seeds > 1 else config.seed,
        "checkpoint": str(
            folder / "checkpoints" / f"step_{int(np.max(jax.device_get(used.step))):09d}"
        ),
        "folder": str(folder),
        "environment": run_folder.environment(),
    }
    with console.status("testing the best checkpoint, and writing the report"):
        summary = run_result.summary_of(data, setup.model, params, config.k2, folder, more)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        report = write_report(folder)
    for line in lines(summary):
        print_line(line)
    print_line(f"Report: {report}; predictions.csv and summary.json are beside it")
    return summary


def lines(summary: dict[str, Any]) -> list[str]:
    """Return the errors on the validation and test parts, and those of the best baseline."""
    metric, base = summary["metric"], summary["baseline"]
    if summary[f"test_{metric}"] is None:
        return ["No row of the test part could be scored."]
    unit = f" (in units of {summary['target']})" if metric == "rmse" else ""
    names = (metric, "mae") if metric == "rmse" else (metric,)

    def errors_text(prefix: str, errors: dict[str, Any]) -> str:
        values = [
            f"{name} {errors[prefix + name]:.4g}" for name in names if prefix + name in errors
        ]
        return "  ".join(values)

    update = int(Path(summary["checkpoint"]).name.removeprefix("step_"))
    alone = "" if update else ", before training"
    found = [f"best checkpoint: that of update {update}{alone}"]
    if f"valid_{metric}" in summary:
        found.append(f"valid  {errors_text('valid_', summary)}{unit}")
    found.append(f"test   {errors_text('test_', summary)}{unit}")
    found.append(f"test   {errors_text('', summary['baselines'][base])}{unit}: baseline, {base}")
    return found
