"""Train on one unbroken sequence of 65,536 steps of a pulse recording, by full BPTT and by TBPTT.

    python -m experiments.pulse_65k            about 4 minutes on two cores
    python -m experiments.pulse_65k --quick    under 60 seconds, too short for conclusions

The sequence is 8.5 minutes of the sensor at 128 Hz, which an LSTM forecasts 32 steps ahead. Its
forget gates start with time scales of 1 to 250 steps, some two heartbeats. The program first
measures the cost of one full gradient, without and with memory plans that rematerialise
intermediates. It then trains by full BPTT, planned to fit into 2 MiB, which makes one update per
pass over the sequence, and by TBPTT(k1, k2), which makes one every k1 steps. All runs have the same
CPU seconds, in turns.

Expected: the planned gradient is equal to rounding, with a tenth of the bytes and at most 1.5 times
the seconds. At equal seconds every run of the best window, chosen on the validation part, has a
lower test error than every run of full BPTT, and its median error is at most half of that of full
BPTT.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import tbptt
from experiments.support.common import baselines, program, targets
from experiments.support.common.console import console, human_bytes, table
from experiments.support.common.equal_time import clock, run_with_progress
from experiments.support.common.forecasting import Job, Model, errors, make_job
from experiments.support.common.unroll_choice import choose_unroll
from experiments.support.estimators.stream_runs import make_runners
from experiments.support.lecture import pulse_figure
from tbptt.data import ppg

T, TEST_START, HORIZONS = 65_536, 200_000, (8, 16, 24, 32)
LONGEST_LAG = 250  # steps: two heartbeats or more; time scales of the units at the start
BUDGET = 2 << 20  # bytes
PLANS = {
    "no plan": None,
    "CarriesOnly()": tbptt.CarriesOnly(),
    "Segments()": tbptt.Segments(),
    "MemoryBudget(2 MiB)": tbptt.MemoryBudget(BUDGET),
}
PLANNED = "MemoryBudget(2 MiB)"


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Full BPTT by memory plan against TBPTT on one long sequence."""

    seeds: int = 3
    """number of seeds of every estimator, each with its own parameters"""
    seconds: float = 12.0
    """training seconds of every run, without compilation"""
    windows: tuple[tuple[int, int], ...] = (
        (32, 32),
        (128, 128),
        (512, 512),
        (4096, 4096),
        (32, 128),
    )
    """pairs k1 k2 to compare with full BPTT, in steps; k1 must divide 65,536"""
    hidden: int = 32
    """units of the LSTM"""
    lr: float = 6e-3
    """initial learning rate of Adam; cosine decay to 0 over the training seconds"""


def one_gradient(model: Model, job: Job, remat: Any, repeats: int) -> tuple[dict[str, Any], Any]:
    """Measure one full gradient with a memory plan; return a row and the gradient."""
    estimator, carry = tbptt.full_bptt(model.loss_fn(remat)), model.cell.initial_carry((1,))
    params = tbptt.init_params(jax.random.key(0), model.cell, model.readout)
    jitted: Any = jax.jit(lambda p, b: estimator.estimate(p, estimator.init(p, carry, b), b).grads)
    compiled = jitted.lower(params, job.batch).compile()
    seconds, grads = [], None
    for _ in range(repeats + 1):
        begin = clock()
        grads = jax.block_until_ready(compiled(params, job.batch))
        seconds.append(clock() - begin)
    plan = tbptt.memory_plan(model.cell, model.readout, params, job.batch, remat=remat)
    row = {
        "seconds": float(np.median(seconds[1:])),
        "bytes": compiled.memory_analysis().temp_size_in_bytes,
    }
    return row | {"plan": str(plan.remat), "predicted_bytes": plan.predicted_bytes}, grads


def plans(model: Model, job: Job, repeats: int) -> list[dict[str, Any]]:
    """Measure one full gradient with every plan, and its distance from the one without a plan."""
    rows, whole = [], None
    for name, remat in PLANS.items():
        row, grads = one_gradient(model, job, remat, repeats)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)]).astype(
            np.float64
        )
        whole = flat if whole is None else whole
        row["difference"] = float(np.linalg.norm(flat - whole) / np.linalg.norm(whole))
        rows.append({"name": name, **row})
        console.print(
            f"{name:20} {row['seconds']:.3f} s  {human_bytes(row['bytes'])}  {row['plan']}"
        )
    return rows


def train_all(model: Model, job: Job, config: Config) -> list[dict[str, Any]]:
    """Train with every window in turns, and score every seed on the held-out parts."""
    runners, rows = [], []
    seeds = tuple(1000 * config.seed + i for i in range(config.seeds))
    for k1, k2 in ((T, T), *config.windows):
        full = k1 == T
        loss_fn = model.loss_fn(PLANS[PLANNED] if full else None)
        estimator = tbptt.full_bptt(loss_fn) if full else tbptt.truncated_bptt(loss_fn, k1, k2)
        name = f"full BPTT, {PLANNED}" if full else f"TBPTT({k1}, {k2})"
        made, size = make_runners(name, model, job.batch, estimator, k1, seeds, 1.0)
        runners += made
        rows.append({"name": name, "k1": k1, "k2": k2, "full": full, "temp_bytes": size})
        console.print(f"{name}: compiled, {human_bytes(size)} per update")
    outcomes = run_with_progress(
        f"one sequence: {len(runners)} runs", runners, config.seconds, [config.lr] * len(runners)
    )
    for i, row in enumerate(rows):
        mine = outcomes[i * config.seeds : (i + 1) * config.seeds]
        scores = [errors(model, outcome.state.params, job) for outcome in mine]
        row["valid_mse"], row["test_mse"] = ([float(s[j]) for s in scores] for j in (0, 1))
        row |= {
            "updates": [o.updates for o in mine],
            "seconds": [round(o.seconds, 2) for o in mine],
        }
        row["seconds_per_update"] = float(np.median([o.seconds / o.updates for o in mine]))
        row["curve"] = mine[0].curve
    return rows


def measure(config: Config) -> dict[str, Any]:
    """Measure the plans, then train."""
    if config.quick:
        config = dataclasses.replace(
            config, seconds=2.0, seeds=1, windows=((128, 128), (4096, 4096))
        )
    job = make_job(ppg(2), HORIZONS, 1, T, TEST_START)
    model = Model(
        tbptt.LSTM(1, config.hidden, longest_lag=LONGEST_LAG),
        nn.Dense(len(HORIZONS)),
        choose_unroll(config.unroll),
    )
    costs = plans(model, job, 2 if config.quick else 7)
    rows = train_all(model, job, config)
    base = {"last value": baselines.persistence(job.values, 0, job.horizon, *job.test)}
    for order in (64, 256):
        base[f"ridge AR({order})"] = baselines.ridge_ar(
            job.values, 0, order, job.horizon, T, *job.test
        )
    best = min(rows, key=lambda row: targets.median(row["valid_mse"]))
    show(rows, base)
    return {
        "curves": {row["name"]: row.pop("curve") for row in rows},
        "targets": expectations(costs, rows, best),
        "results": {
            "T": T,
            "plans": costs,
            "rows": rows,
            "baselines": base,
            "chosen": best["name"],
        },
    }


def expectations(
    costs: list[dict[str, Any]], rows: list[dict[str, Any]], best: dict[str, Any]
) -> list[targets.Row]:
    """Compare costs and errors with the targets."""
    by, full = {row["name"]: row for row in costs}, next(row for row in rows if row["full"])
    unplanned, planned = by["no plan"], by[PLANNED]
    what, against = f"full gradient with {PLANNED}", "without a plan: 1"
    best_full, half = targets.smallest(full["test_mse"]), targets.median(full["test_mse"]) / 2
    updates = int(targets.median(full["updates"]))
    chosen = f"{best['name']} (chosen on validation): test MSE at equal seconds"
    return [
        targets.expect(
            f"{what}: temporary bytes",
            planned["bytes"] / unplanned["bytes"],
            at_most=0.1,
            because=against,
        ),
        targets.expect(
            f"{what}: seconds",
            planned["seconds"] / unplanned["seconds"],
            at_most=1.5,
            because=against,
        ),
        targets.expect(f"{what}: relative difference", planned["difference"], at_most=1e-3),
        targets.expect(
            f"{chosen}, relative to that of the best run of full BPTT",
            [mse / best_full for mse in best["test_mse"]],
            at_most=1.0,
            of=targets.largest,
            because=f"the best run of full BPTT has {best_full:.3f} after {updates:,} updates",
            otherwise="Full BPTT, with its few updates, is as accurate as the best window here.",
        ),
        targets.expect(
            chosen,
            best["test_mse"],
            at_most=half,
            because="half the median of full BPTT",
            otherwise=f"Full BPTT has {2 * half:.3f} after {updates:,} updates; the median of the "
            f"window is {targets.median(best['test_mse']) / (2 * half):.2f} times that.",
        ),
    ]


def show(rows: list[dict[str, Any]], base: dict[str, float]) -> None:
    """Print the tables of networks and baselines."""
    table(
        f"{T:,} steps in one sequence, equal training seconds (medians over seeds)",
        ("estimator", "updates", "ms per update", "bytes per update", "valid MSE", "test MSE"),
        [
            (
                row["name"],
                str(int(targets.median(row["updates"]))),
                f"{1e3 * row['seconds_per_update']:.2f}",
                human_bytes(row["temp_bytes"]),
                f"{targets.median(row['valid_mse']):.3f}",
                f"{targets.median(row['test_mse']):.3f}",
            )
            for row in rows
        ],
    )
    table(
        "without a network",
        ("baseline", "test MSE"),
        [(name, f"{mse:.3f}") for name, mse in base.items()],
    )


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the cost of the plans, the error by window, and the loss by seconds."""
    pulse_figure.draw(data, folder)


if __name__ == "__main__":
    program.run(__file__)
