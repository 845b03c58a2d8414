"""Compare full and truncated BPTT at equal training seconds on a pulse recording.

    python -m experiments.window_tradeoff            about 3 minutes on two cores
    python -m experiments.window_tradeoff --quick    under 30 seconds, too short for conclusions

Expected on two cores: the error has a minimum near k1 = k2 = 50, below that of ridge AR(256),
0.157. Full BPTT over
sequences of 5,000 steps has a much larger error and uses about a hundred times the memory. These
are claims 8 to 11 of
the lecture; the exit status of this program does not depend on the numbers.
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
from experiments.support.common.unroll_choice import UnrollName, choose_unroll, print_unroll
from experiments.support.lecture import tradeoff_figure, tradeoff_table
from tbptt.data import DataUnavailable, mackey_glass, ppg
from tbptt.diagnostics import gradient_by_lag

TRAIN_END, TEST_START, SAMPLES = 180_000, 200_000, 277_548


@dataclasses.dataclass(frozen=True)
class Config:
    """Forecast a recording some steps ahead with an LSTM.

    Compare windows at equal training seconds.
    """

    dataset: Literal["ppg", "mackey_glass"] = "ppg"
    """ppg: pulse sensor at 128 Hz, downloaded once (4.3 MB); mackey_glass: synthetic, without a
    download"""
    horizon: int = 32
    """number of steps ahead to forecast (ppg: 0.25 s)"""
    forecasts: int = 8
    """number of evenly spaced horizons to predict, up to --horizon; only the last one is scored"""
    batch: int = 36
    """number of contiguous segments of the training part, trained side by side"""
    hidden: int = 64
    """units of the LSTM"""
    windows: tuple[tuple[int, int], ...] = (
        (1000, 1000),
        (250, 250),
        (50, 50),
        (10, 10),
        (50, 100),
        (10, 50),
    )
    """pairs k1 k2 to compare with full BPTT, in steps"""
    seconds: float = 18.0
    """training seconds of each run, without compilation"""
    lr: float = 6e-3
    """initial learning rate of Adam; cosine decay to 0 over the training time"""
    clip: float = 1.0
    """global norm at which gradients are clipped"""
    unroll: UnrollName = "scan"
    """function that runs the cell through time"""
    seed: int = 0
    """seed of parameters and data"""
    out: Path | None = None
    """folder of the run; default runs/window_tradeoff/TIMESTAMP"""
    quick: bool = False
    """run a smaller version: 0.7 seconds per run, 32 units, fewer windows"""


def main(config: Config) -> dict[str, Any]:
    """Run the comparison and return the summary."""
    if config.quick:
        config = dataclasses.replace(
            config, seconds=0.7, hidden=32, windows=((250, 250), (50, 50), (50, 100))
        )
    folder = run_folder.open_folder(config.out, "window_tradeoff", config)
    recording = ppg(2) if config.dataset == "ppg" else mackey_glass(SAMPLES, seed=config.seed)
    if config.forecasts < 1 or config.horizon % config.forecasts:
        raise ValueError(
            f"--forecasts must divide --horizon; got {config.forecasts} and {config.horizon}"
        )
    every = config.horizon // config.forecasts
    horizons = tuple(range(every, config.horizon + 1, every))
    job = make_job(recording, horizons, config.batch, TRAIN_END, TEST_START)
    model = Model(
        tbptt.LSTM(1, config.hidden), nn.Dense(config.forecasts), choose_unroll(config.unroll)
    )
    print_unroll(config.unroll)
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
        "memory": memory_by_length(
            job, model, lengths=(2500, 5000) if config.quick else (1250, 2500, 5000)
        ),
        "environment": run_folder.environment(),
        "folder": str(folder),
    }
    (folder / "lag.json").write_text(json.dumps(lag_profile(job, model, best.params)) + "\n")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    tradeoff_table.show(summary)
    tradeoff_figure.draw(folder)
    return summary


def one_run(
    config: Config, job: Job, model: Model, k1: int, k2: int, display: Any
) -> tuple[dict[str, Any], Run]:
    """Train with one estimator for `config.seconds` and score the result."""
    full = k1 == job.batch.inputs.shape[0]
    estimator = (
        tbptt.full_bptt(model.loss_fn()) if full else tbptt.truncated_bptt(model.loss_fn(), k1, k2)
    )
    name = f"full BPTT, {k1} steps" if full else f"TBPTT({k1}, {k2})"
    task = display.add_task(name.ljust(24), total=config.seconds, loss="compiling")

    def report(used: float, loss: float) -> None:
        display.update(task, completed=min(used, config.seconds), loss=f"{loss:.4f}")

    run = train(
        estimator,
        model,
        job,
        k1,
        lr=config.lr,
        clip=config.clip,
        seconds=config.seconds,
        seed=config.seed,
        report=report,
    )
    valid_mse, test_mse = errors(model, run.params, job)
    row = {"estimator": "full_bptt" if full else "truncated_bptt", "k1": k1, "k2": k2}
    measured = {name: value for name, value in run._asdict().items() if name != "params"}
    measured["temp_bytes"] = step_temp_bytes(estimator, model, job, k1)
    return {**row, **measured, "valid_mse": valid_mse, "test_mse": test_mse}, run


def measure_baselines(job: Job, horizon: int) -> dict[str, float]:
    """Score forecasts without a network on the test part."""
    scores = {"persistence": baselines.persistence(job.values, 0, horizon, *job.test)}
    for order in (16, 64, 256):
        scores[f"ar{order}"] = baselines.ridge_ar(
            job.values, 0, order, horizon, TRAIN_END, *job.test
        )
    return scores


def chosen(rows: list[dict[str, Any]], base: dict[str, float]) -> dict[str, Any]:
    """Select the window with the lowest validation error and return its scores."""
    row = min(rows, key=lambda row: row["valid_mse"])
    kept = {name: row[name] for name in ("estimator", "k1", "k2", "valid_mse", "test_mse")}
    return {**kept, "beats_ar256": row["test_mse"] < base["ar256"]}


def memory_by_length(
    job: Job, model: Model, lengths: tuple[int, ...], k: int = 50
) -> list[dict[str, int]]:
    """Return the temporary bytes of TBPTT(k, k) and of full BPTT by sequence length."""
    truncated, full = tbptt.truncated_bptt(model.loss_fn(), k, k), tbptt.full_bptt(model.loss_fn())
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
    """Measure the median gradient by lag of the trained and of the untrained model."""
    xs = job.batch.inputs[: lags + 500]
    weight = params.readout["params"]["kernel"][:, -1]
    carry = model.cell.initial_carry(xs.shape[1:2])

    def profile(cell_params: Any) -> list[float]:
        norms = jax.jit(
            lambda p: gradient_by_lag(model.cell, p, carry, xs, lambda y: jnp.sum(y @ weight))
        )(cell_params)
        return [float(f"{norm:.4g}") for norm in np.median(np.asarray(norms[:lags]), axis=1)]

    return {
        "trained": profile(params.cell),
        "untrained": profile(model.cell.init(jax.random.key(0))),
    }


if __name__ == "__main__":
    try:
        result = main(tyro.cli(Config, description=__doc__))
    except (DataUnavailable, FileExistsError, FloatingPointError, ImportError, ValueError) as error:
        sys.exit(f"window_tradeoff: {error}")
    run_folder.finish(Path(result["folder"]), result)
