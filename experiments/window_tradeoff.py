"""Which window? Full against truncated BPTT at EQUAL training seconds, on a real pulse recording.

    python -m experiments.window_tradeoff            about 3 minutes on two cores
    python -m experiments.window_tradeoff --quick    under 30 seconds, too short to learn much

Expected (two cores): the error has a minimum near k1 = k2 = 50, below ridge AR(256) with 0.157; full BPTT over lanes of
5,000 steps stays far above it, with about a hundred times the memory. Claims 8 to 11 of the lecture; this program measures
them and judges none, so its exit status does not depend on the numbers.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import tbptt
from experiments.support.common import baselines, run_folder
from experiments.support.common.console import progress
from experiments.support.common.forecasting import (
    Job,
    Model,
    Run,
    epoch_temp_bytes,
    errors,
    make_job,
    step_temp_bytes,
    train,
)
from experiments.support.lecture import tradeoff_figure, tradeoff_table
from tbptt.data import DataUnavailable, mackey_glass, ppg
from tbptt.diagnostics import gradient_by_lag

TRAIN_END, TEST_START, SAMPLES = 180_000, 200_000, 277_548


@dataclasses.dataclass(frozen=True)
class Config:
    """Forecast a recording some steps ahead with an LSTM; compare windows at equal training seconds."""

    dataset: Literal["ppg", "mackey_glass"] = "ppg"
    """ppg: pulse sensor, 128 Hz, fetched once (4.3 MB). mackey_glass: made here, needs no network."""
    horizon: int = 32
    """steps ahead (ppg: 0.25 s)"""
    forecasts: int = 8
    """the network forecasts this many evenly spaced horizons up to `horizon`; only the last one is scored"""
    lanes: int = 36
    """the training part is cut into this many contiguous lanes, trained side by side"""
    hidden: int = 64
    """units of the LSTM"""
    windows: tuple[tuple[int, int], ...] = ((1000, 1000), (250, 250), (50, 50), (10, 10), (50, 100), (10, 50))
    """the pairs k1 k2 to compare with full BPTT, in steps"""
    seconds: float = 18.0
    """training seconds for each run, compilation apart"""
    lr: float = 6e-3
    """Adam's rate at the start; falls to 0 along half a cosine of the time used"""
    clip: float = 1.0
    """global norm at which gradients are clipped"""
    seed: int = 0
    out: Path | None = None
    """folder of the run; default runs/window_tradeoff/TIMESTAMP"""
    quick: bool = False
    """0.7 seconds a run, 32 units, fewer windows: shows that it works, not what is true"""


def main(config: Config) -> dict[str, Any]:
    """Runs the comparison and returns the summary."""
    if config.quick:
        config = dataclasses.replace(config, seconds=0.7, hidden=32, windows=((250, 250), (50, 50), (50, 100)))
    folder = run_folder.open_folder(config.out, "window_tradeoff", config)
    recording = ppg(2) if config.dataset == "ppg" else mackey_glass(SAMPLES, seed=config.seed)
    if config.forecasts < 1 or config.horizon % config.forecasts:
        raise ValueError(f"--forecasts must divide --horizon; got {config.forecasts} and {config.horizon}")
    every = config.horizon // config.forecasts
    horizons = tuple(range(every, config.horizon + 1, every))
    job = make_job(recording, horizons, config.lanes, TRAIN_END, TEST_START)
    model = Model(tbptt.LSTM(1, config.hidden), nn.Dense(config.forecasts))
    length = job.batch.inputs.shape[0]
    base = measure_baselines(job, config.horizon)

    rows: list[dict[str, Any]] = []
    runs: list[Run] = []
    with progress() as display:
        for k1, k2 in ((length, length), *config.windows):
            row, run = one_run(config, job, model, k1, k2, display)
            run_folder.append_metrics(folder, row)
            rows.append(row)
            runs.append(run)
    best = runs[min(range(len(rows)), key=lambda i: rows[i]["valid_mse"])]
    summary = {
        "dataset": config.dataset,
        "train_steps": TRAIN_END,
        "test_steps": job.test[1] - job.test[0],
        "horizon": config.horizon,
        "quick": config.quick,
        "baselines": base,
        "rows": rows,
        "chosen": chosen(rows, base),
        "memory": memory_by_length(job, model, lengths=(2500, 5000) if config.quick else (1250, 2500, 5000)),
        "environment": run_folder.environment(),
        "folder": str(folder),
    }
    (folder / "lag.json").write_text(json.dumps(lag_profile(job, model, best.params)) + "\n")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    tradeoff_table.tell(summary)
    tradeoff_figure.draw(folder)
    return summary


def one_run(config: Config, job: Job, model: Model, k1: int, k2: int, display: Any) -> tuple[dict[str, Any], Run]:
    """Trains with one estimator for the common time and scores it."""
    full = k1 == job.batch.inputs.shape[0]
    loss_fn = tbptt.sequence_loss(model.cell, model.readout, tbptt.squared_error)
    estimator = tbptt.full_bptt(loss_fn) if full else tbptt.truncated_bptt(loss_fn, k1, k2)
    name = f"full BPTT, {k1} steps" if full else f"TBPTT({k1}, {k2})"
    task = display.add_task(name.ljust(24), total=config.seconds, loss="compiling")

    def report(used: float, loss: float) -> None:
        display.update(task, completed=min(used, config.seconds), loss=f"{loss:.4f}")

    run = train(
        estimator, model, job, k1, lr=config.lr, clip=config.clip, seconds=config.seconds, seed=config.seed, report=report
    )
    valid_mse, test_mse = errors(model, run.params, job)
    row = {"estimator": "full_bptt" if full else "truncated_bptt", "k1": k1, "k2": k2}
    measured = {name: value for name, value in run._asdict().items() if name != "params"}
    measured["temp_bytes"] = step_temp_bytes(estimator, model, job, k1)
    return {**row, **measured, "valid_mse": valid_mse, "test_mse": test_mse}, run


def measure_baselines(job: Job, horizon: int) -> dict[str, float]:
    """Scores forecasts without a network on the test part."""
    scores = {"persistence": baselines.persistence(job.values, 0, horizon, *job.test)}
    for order in (16, 64, 256):
        scores[f"ar{order}"] = baselines.ridge_ar(job.values, 0, order, horizon, TRAIN_END, *job.test)
    return scores


def chosen(rows: list[dict[str, Any]], base: dict[str, float]) -> dict[str, Any]:
    """Picks the window by validation error alone; its test error is then looked at once."""
    row = min(rows, key=lambda row: row["valid_mse"])
    kept = {name: row[name] for name in ("estimator", "k1", "k2", "valid_mse", "test_mse")}
    return {**kept, "beats_ar256": row["test_mse"] < base["ar256"]}


def memory_by_length(job: Job, model: Model, lengths: tuple[int, ...], k: int = 50) -> list[dict[str, int]]:
    """Reads the temporary bytes over lanes of growing length: one step and one whole epoch of TBPTT(k, k), full BPTT."""
    loss_fn = tbptt.sequence_loss(model.cell, model.readout, tbptt.squared_error)
    truncated, full = tbptt.truncated_bptt(loss_fn, k, k), tbptt.full_bptt(loss_fn)
    step = step_temp_bytes(truncated, model, job, k)
    return [
        {
            "length": length,
            "truncated_step": step,
            "truncated_epoch": epoch_temp_bytes(truncated, model, job, k, length),
            "full_step": step_temp_bytes(full, model, job, length),
        }
        for length in lengths
    ]


def lag_profile(job: Job, model: Model, params: Any, lags: int = 1000) -> dict[str, list[float]]:
    """Measures the trained model's gradient by lag, and the untrained one's, over all lanes."""
    xs = job.batch.inputs[: lags + 500]
    weight = params.readout["params"]["kernel"][:, -1]
    carry = model.cell.initial_carry(xs.shape[1:2])

    def profile(cell_params: Any) -> list[float]:
        norms = jax.jit(lambda p: gradient_by_lag(model.cell, p, carry, xs, lambda y: jnp.sum(y @ weight)))(cell_params)
        return [float(f"{norm:.4g}") for norm in np.median(np.asarray(norms[:lags]), axis=1)]

    return {"trained": profile(params.cell), "untrained": profile(model.cell.init(jax.random.key(0)))}


if __name__ == "__main__":
    try:
        result = main(tyro.cli(Config, description=__doc__))
    except (DataUnavailable, FileExistsError, FloatingPointError, ValueError) as error:
        sys.exit(f"window_tradeoff: {error}")
    run_folder.finish(Path(result["folder"]), result)
