"""The end of a run: the best checkpoint and seed by validation, the test, the report."""

import json
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tbptt
from experiments.support.common import run_folder
from experiments.support.common.console import console
from experiments.support.train import result as run_result
from experiments.support.train.data import RunData
from experiments.support.train.loop import lower_is_better
from experiments.support.train.metrics_file import Row, read_rows
from experiments.support.train.processes import is_first
from experiments.support.train.report import write_report
from experiments.support.train.setup import Setup, params_of
from tbptt.checkpoints import Checkpoints


def tell(text: str) -> None:
    """Prints a line for people, on stderr; of several processes the first one does."""
    if is_first():
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def best_seed(config: Any, data: RunData, made: Setup, state: tbptt.TrainState) -> tuple[dict[str, float], int, Any]:
    """Scores every seed on the validation part; returns the numbers of the best, which one it is, and its parameters."""
    if not is_first():
        return {}, 0, None
    params = params_of(state, config.seeds)
    first, stop = data.parts.train, data.parts.valid
    scores = [run_result.score_rows(data, made.model, one, first, stop, config.k2) for one in params]
    ranked = [float("inf") if (value := lower_is_better(one)) is None else value for one in scores]
    best = ranked.index(min(ranked))
    return scores[best], best, params[best]


def steps_per_second(rows: list[Row]) -> float | None:
    """Returns the median over the lines of the log, without the first of each session, in which programs are compiled."""
    first, rates = True, {True: [], False: []}
    for row in rows:
        if row["kind"] == "train":
            rates[first].append(row["steps_per_second"])
        first = row["kind"] == "resumed"
    known = rates[False] or rates[True]
    return round(statistics.median(known), 1) if known else None


def finish(
    config: Any, data: RunData, made: Setup, folder: Path, checkpoints: Checkpoints, state: tbptt.TrainState
) -> dict[str, Any]:
    """Tests the best checkpoint by validation (else the last state); writes predictions, summary and report."""
    best = checkpoints.best(state)
    used = state if best is None else best.state
    if not is_first():
        return {"folder": str(folder)}
    valid, seed, params = best_seed(config, data, made, used)
    more = {
        "valid_metric": run_result.number(valid.get(run_result.metric_name(data))),
        "updates": int(np.max(jax.device_get(state.step))),
        "steps_per_second": steps_per_second(read_rows(folder / "metrics.jsonl")),
        "seed": seed if config.seeds > 1 else config.seed,
        "checkpoint": str(folder / "checkpoints" / f"step_{int(np.max(jax.device_get(used.step))):09d}"),
        "folder": str(folder),
        "environment": run_folder.environment(),
    }
    summary = run_result.summary_of(data, made.model, params, config.k2, folder, more)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report = write_report(folder)
    tell(
        f"test {summary['metric']} {summary['test_metric']:.4g}; {summary['baseline_name']} {summary['baseline']:.4g}. "
        f"Report: {report}"
        if summary["test_metric"] is not None
        else f"nothing in the test part could be scored. Report: {report}"
    )
    return summary
