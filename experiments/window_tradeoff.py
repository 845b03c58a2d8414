"""Compare full and truncated BPTT at equal computation on a pulse recording, then train well.

    python -m experiments.window_tradeoff            under 4 minutes on two cores
    python -m experiments.window_tradeoff --quick    about 40 seconds; its claims are not judged

First a sweep: every window trains with several seeds for the same number of cell steps, and the
window with the lowest median validation error is chosen. Then that window alone trains longer, and
the test part is read once. Expected: the error has a minimum near k1 = k2 = 50; full BPTT has a
much larger error, as it makes one update per pass, and needs more than twenty times the memory; the
mean forecast of the seeds is at least 10 % better than ridge AR(256), the best forecast without a
network.

A pass of TBPTT(k1, k2) over the data differentiates k2 / k1 times as many steps as the data has, so
it is given k1 / k2 times as many passes. The results depend on the seed alone, not on the speed of
the machine; the measured seconds are reported beside them.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from experiments.support.common import baselines, program
from experiments.support.common.console import console, human_bytes, progress, table
from experiments.support.common.forecasting import (
    Job,
    Model,
    Run,
    estimator_of,
    forecast,
    full_bptt_of,
    make_job,
    mse,
    step_temp_bytes,
    train,
)
from experiments.support.common.unroll_choice import choose_unroll
from experiments.support.lecture import tradeoff_figure
from tbptt.data import mackey_glass, ppg
from tbptt.diagnostics import gradient_by_lag

TRAIN_END, TEST_START, SAMPLES = 180_000, 200_000, 277_548
COMPILE = "about 3 s"


@dataclasses.dataclass(frozen=True)
class Config(program.Trained):
    """Forecast a recording some steps ahead with an LSTM, with several windows."""

    dataset: Literal["ppg", "mackey_glass"] = "ppg"
    """ppg: pulse sensor at 128 Hz, downloaded once (4.3 MB); mackey_glass: synthetic, without a
    download"""
    horizon: int = 32
    """number of steps ahead to forecast (ppg: 0.25 s)"""
    forecasts: int = 8
    """number of evenly spaced horizons to predict, up to --horizon; only the last one is scored"""
    batch: int = 18
    """number of contiguous segments of the training part, trained side by side"""
    hidden: int = 64
    """units of the LSTM"""
    longest_lag: int = 250
    """longest lag in steps that the initial forget gates keep, two or three heartbeats"""
    windows: tuple[tuple[int, int], ...] = (
        (1000, 1000),
        (250, 250),
        (50, 50),
        (10, 10),
        (50, 100),
        (10, 50),
    )
    """pairs k1 k2 to compare with full BPTT, in steps"""
    seeds: int = 3
    """number of runs of every window, and of the chosen one"""
    sweep_passes: int = 6
    """passes over the training part in each run of the sweep, if k2 = k1"""
    passes: int = 24
    """passes over the training part in each run of the chosen window, if k2 = k1"""
    lr: float = 6e-3
    """initial learning rate of Adam; cosine decay to 0 over the run"""
    clip: float = 1.0
    """global norm at which gradients are clipped"""


def measure(config: Config) -> dict[str, Any]:
    """Sweep the windows, train the chosen one, and read the test part once."""
    if config.quick:
        config = dataclasses.replace(
            config, sweep_passes=1, passes=2, hidden=32, seeds=2,
            windows=((250, 250), (50, 50), (50, 100)),
        )  # fmt: skip
    if config.forecasts < 1 or config.horizon % config.forecasts:
        raise ValueError(
            f"--forecasts must divide --horizon; got {config.forecasts} and {config.horizon}"
        )
    if config.seeds < 1:
        raise ValueError(f"--seeds must be at least 1; got {config.seeds}")
    recording = ppg(2) if config.dataset == "ppg" else mackey_glass(SAMPLES, seed=config.seed)
    every = config.horizon // config.forecasts
    horizons = tuple(range(every, config.horizon + 1, every))
    job = make_job(recording, horizons, config.batch, TRAIN_END, TEST_START)
    cell = tbptt.LSTM(1, config.hidden, longest_lag=config.longest_lag)
    model = Model(cell, nn.Dense(config.forecasts), choose_unroll(config.unroll))
    length = job.batch.inputs.shape[0]
    with progress() as display:
        rows = [
            one_window(config, job, model, k1, k2, display)
            for k1, k2 in ((length, length), *config.windows)
        ]
        best = min(rows, key=lambda row: row["valid_mse"])
        chosen = train_chosen(config, job, model, best, display)
    base = {
        "valid": without_a_network(job, config.horizon, "valid", orders=(256,)),
        "test": without_a_network(job, config.horizon, "test"),
    }
    data = {
        "baselines": base,
        "rows": rows,
        "chosen": {name: value for name, value in chosen.items() if name != "params"},
        "lag": lag_profile(job, model, chosen["params"], 250 if config.quick else 1000),
        "setting": {"dataset": config.dataset, "horizon": config.horizon, "quick": config.quick},
    }
    results = {name: data[name] for name in ("baselines", "rows", "chosen")}
    report(data)
    return {**data, "results": results, "claims": claims(data), "judged": not config.quick}


def one_window(
    config: Config, job: Job, model: Model, k1: int, k2: int, display: Any
) -> dict[str, Any]:
    """Train several seeds for `config.sweep_passes` each and score them on the validation part."""
    estimator, name = _estimator(job, model, k1, k2)
    runs = _seeds(config, job, model, estimator, name, k1, k2, config.sweep_passes, display)
    scores = [mse(job, forecast(model, run.params, job, job.valid), job.valid) for run in runs]
    return {
        "estimator": name,
        "k1": k1,
        "k2": k2,
        "passes": runs[0].epochs,
        "updates": runs[0].updates,
        "train_seconds": float(np.median([run.train_seconds for run in runs])),
        "compile_seconds": runs[0].compile_seconds,
        "temp_bytes": step_temp_bytes(estimator, model, job, k1),
        "valid_mse": float(np.median(scores)),
        "valid_mse_seeds": scores,
    }


def train_chosen(
    config: Config, job: Job, model: Model, best: dict[str, Any], display: Any
) -> dict[str, Any]:
    """Train the chosen window for `config.passes` with every seed, and score the test part.

    test_mse is the error of the mean of the forecasts of all seeds.
    """
    k1, k2 = best["k1"], best["k2"]
    estimator, name = _estimator(job, model, k1, k2)
    label = f"{name}, longer"
    runs = _seeds(config, job, model, estimator, label, k1, k2, config.passes, display)
    outputs = [forecast(model, run.params, job, job.test) for run in runs]
    return {
        "estimator": name,
        "k1": k1,
        "k2": k2,
        "passes": runs[0].epochs,
        "updates": runs[0].updates,
        "train_seconds": float(np.median([run.train_seconds for run in runs])),
        "test_mse": mse(job, np.mean(outputs, axis=0), job.test),
        "test_mse_seeds": [mse(job, output, job.test) for output in outputs],
        "params": runs[0].params,
    }


def _estimator(job: Job, model: Model, k1: int, k2: int) -> tuple[tbptt.Estimator, str]:
    if k1 == job.batch.inputs.shape[0]:
        return full_bptt_of(model), f"full BPTT, {k1} steps"
    return estimator_of(model, k1, k2), f"TBPTT({k1}, {k2})"


def _seeds(
    config: Config, job: Job, model: Model, estimator: tbptt.Estimator, name: str, k1: int, k2: int,
    passes: int, display: Any,
) -> list[Run]:  # fmt: skip
    """Train with every seed, for `passes` passes if k2 = k1."""
    seeds = range(config.seed, config.seed + config.seeds)
    return [
        _train(config, job, model, estimator, name, k1, k2, passes, seed, display) for seed in seeds
    ]


def _train(
    config: Config, job: Job, model: Model, estimator: tbptt.Estimator, name: str, k1: int, k2: int,
    passes: int, seed: int, display: Any,
) -> Run:  # fmt: skip
    compiles = seed == config.seed and passes == config.sweep_passes  # later runs share the program
    done, epochs = itertools.count(1), max(1, round(passes * k1 / k2))
    task = display.add_task(
        (f"compiling {name}, {COMPILE}" if compiles else name).ljust(34), total=epochs, loss="-"
    )

    def report(used: float, loss: float) -> None:
        display.update(task, description=name.ljust(34), completed=next(done), loss=f"{loss:.4f}")

    run = train(
        estimator, model, job, k1, lr=config.lr, clip=config.clip, epochs=epochs, seed=seed,
        report=report,
    )  # fmt: skip
    if seed < config.seed + config.seeds - 1:  # one line per window remains
        display.remove_task(task)
    return run


def without_a_network(
    job: Job, horizon: int, part: str, orders: tuple[int, ...] = (16, 64, 256)
) -> dict[str, float]:
    """Score forecasts without a network, fitted on the training part, on one of the others."""
    start, stop = getattr(job, part)
    scores = {"persistence": baselines.persistence(job.values, 0, horizon, start, stop)}
    for order in orders:
        scores[f"ar{order}"] = baselines.ridge_ar(
            job.values, 0, order, horizon, TRAIN_END, start, stop
        )
    return scores


def claims(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the result with the expectations."""
    chosen, full = data["chosen"], data["rows"][0]
    row = next(row for row in data["rows"] if row["estimator"] == chosen["estimator"])
    ar, memory = data["baselines"]["test"]["ar256"], full["temp_bytes"] / row["temp_bytes"]
    times = full["valid_mse"] / row["valid_mse"]
    return [
        program.claim(
            1,
            f"test MSE of {chosen['estimator']}, mean forecast; of ridge AR(256)",
            f"{chosen['test_mse']:.4f}; {ar:.4f}",
            "at least 10 % lower",
            chosen["test_mse"] <= 0.9 * ar,
        ),
        program.claim(
            2,
            "validation MSE at equal computation, medians: full BPTT over the chosen window",
            times,
            "at least 2",
            times >= 2,
        ),
        program.claim(
            3,
            "temporary memory of one update: full BPTT over the chosen window",
            memory,
            "at least 20",
            memory >= 20,
        ),
    ]


def lag_profile(job: Job, model: Model, params: Any, lags: int) -> dict[str, list[float]]:
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


def report(data: dict[str, Any]) -> None:
    """Print the sweep and the final test as tables."""
    short = " (QUICK: too short to conclude from)" if data["setting"]["quick"] else ""
    seeds = len(data["chosen"]["test_mse_seeds"])
    table(
        f"sweep: validation MSE at equal computation, {seeds} seeds{short}",
        (
            "estimator",
            "passes",
            "updates",
            "train s",
            "compile s",
            "memory",
            "median",
            "lowest",
            "highest",
        ),
        [
            (
                row["estimator"],
                f"{row['passes']}",
                f"{row['updates']:,}",
                f"{row['train_seconds']:.1f}",
                f"{row['compile_seconds']:.1f}",
                human_bytes(row["temp_bytes"]),
                *(f"{v:.3f}" for v in _spread(row["valid_mse_seeds"])),
            )
            for row in data["rows"]
        ],
    )
    chosen = data["chosen"]
    median, low, high = _spread(chosen["test_mse_seeds"])
    console.print(
        f"chosen: {chosen['estimator']}, {chosen['passes']} passes "
        f"({chosen['train_seconds']:.0f} s) with {seeds} seeds. Test MSE: mean forecast "
        f"{chosen['test_mse']:.3f}; single seeds {median:.3f} ({low:.3f} to {high:.3f})"
    )
    base = data["baselines"]["test"].items()
    listed = ", ".join(f"{name} {error:.3f}" for name, error in base)
    console.print(f"without a network: {listed}")


def _spread(values: list[float]) -> tuple[float, float, float]:
    return float(np.median(values)), min(values), max(values)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw error, test, memory and gradient by window."""
    tradeoff_figure.draw(data, folder)


if __name__ == "__main__":
    program.run(__file__)
