"""The lecture's own case: 65,536 steps of a pulse in ONE unbroken sequence, by full BPTT and by TBPTT.

    python -m experiments.pulse_65k            about 4 minutes on two cores
    python -m experiments.pulse_65k --quick    under 60 seconds, too short to conclude from

One lane, 8.5 minutes of the sensor at 128 Hz, forecast 32 steps ahead by an LSTM. First the cost of one full gradient:
kept whole, and by memory plans that compute again what they did not keep. Then training: full BPTT, fitted into 2 MiB,
makes one update a pass over the sequence, TBPTT(k1, k2) one every k1 steps; all have the same seconds (of the processor),
in turns. Expected: the planned gradient is the same to rounding, in a tenth of the bytes, in at most 1.5 times the
seconds; and at equal seconds every run of the best window, chosen on a validation part, leaves less test error than every
run of full BPTT, and the median at most half of full BPTT's.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import tbptt
from experiments.support.common import baselines, program
from experiments.support.common import targets as known
from experiments.support.common.console import console, human_bytes, table
from experiments.support.common.equal_time import clock, shown_race
from experiments.support.common.forecasting import Job, Model, errors, make_job
from experiments.support.estimators.stream_runs import make_runners
from experiments.support.lecture import pulse_figure
from tbptt.data import ppg

T, TEST_START, HORIZONS = 65_536, 200_000, (8, 16, 24, 32)
BUDGET = 2 << 20  # bytes
PLANS = {
    "kept whole": None,
    "CarriesOnly()": tbptt.CarriesOnly(),
    "Segments()": tbptt.Segments(),
    "MemoryBudget(2 MiB)": tbptt.MemoryBudget(BUDGET),
}
PLANNED = "MemoryBudget(2 MiB)"


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Full BPTT by memory plan against TBPTT on one long sequence."""

    seeds: int = 3
    """runs of every estimator, each its own parameters"""
    seconds: float = 12.0
    """training seconds of every run, compilation apart"""
    windows: tuple[tuple[int, int], ...] = ((32, 32), (128, 128), (512, 512), (4096, 4096), (32, 128))
    """the pairs k1 k2 to compare with full BPTT, in steps; k1 must divide 65,536"""
    hidden: int = 32
    """units of the LSTM"""
    lr: float = 6e-3
    """Adam's rate at the start; falls to 0 along half a cosine of the seconds used"""


def one_gradient(model: Model, job: Job, remat: Any, repeats: int) -> tuple[dict[str, Any], Any]:
    """Measures one full gradient under a memory plan; returns a row, and the gradient."""
    loss_fn = tbptt.sequence_loss(model.cell, model.readout, tbptt.squared_error, remat=remat)
    estimator, carry = tbptt.full_bptt(loss_fn), model.cell.initial_carry((1,))
    params = tbptt.init_params(jax.random.key(0), model.cell, model.readout)
    jitted: Any = jax.jit(lambda p, b: estimator.estimate(p, estimator.init(p, carry, b), b).grads)
    compiled = jitted.lower(params, job.batch).compile()
    seconds, grads = [], None
    for _ in range(repeats + 1):
        begin = clock()
        grads = jax.block_until_ready(compiled(params, job.batch))
        seconds.append(clock() - begin)
    plan = tbptt.memory_plan(model.cell, model.readout, params, job.batch, remat=remat)
    row = {"seconds": float(np.median(seconds[1:])), "bytes": compiled.memory_analysis().temp_size_in_bytes}
    return row | {"plan": str(plan.remat), "predicted_bytes": plan.predicted_bytes}, grads


def plans(model: Model, job: Job, repeats: int) -> list[dict[str, Any]]:
    """Measures one full gradient under every plan, and how far it is from the one that was kept whole."""
    rows, whole = [], None
    for name, remat in PLANS.items():
        row, grads = one_gradient(model, job, remat, repeats)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)]).astype(np.float64)
        whole = flat if whole is None else whole
        row["difference"] = float(np.linalg.norm(flat - whole) / np.linalg.norm(whole))
        rows.append({"name": name, **row})
        console.print(f"{name:20} {row['seconds']:.3f} s  {human_bytes(row['bytes'])}  {row['plan']}")
    return rows


def train_all(model: Model, job: Job, config: Config) -> list[dict[str, Any]]:
    """Trains with every window in turns, and scores every seed on the validation and the test part."""
    runners, rows = [], []
    seeds = tuple(1000 * config.seed + i for i in range(config.seeds))
    for k1, k2 in ((T, T), *config.windows):
        full = k1 == T
        remat = PLANS[PLANNED] if full else None
        loss_fn = tbptt.sequence_loss(model.cell, model.readout, tbptt.squared_error, remat=remat)
        estimator = tbptt.full_bptt(loss_fn) if full else tbptt.truncated_bptt(loss_fn, k1, k2)
        name = f"full BPTT, {PLANNED}" if full else f"TBPTT({k1}, {k2})"
        made, size = make_runners(name, model, job.batch, estimator, k1, seeds, 1.0)
        runners += made
        rows.append({"name": name, "k1": k1, "k2": k2, "full": full, "temp_bytes": size})
        console.print(f"{name}: compiled, {human_bytes(size)} for an update")
    outcomes = shown_race(f"one sequence: {len(runners)} runs", runners, config.seconds, [config.lr] * len(runners))
    for i, row in enumerate(rows):
        mine = outcomes[i * config.seeds : (i + 1) * config.seeds]
        scores = [errors(model, outcome.state.params, job) for outcome in mine]
        row["valid_mse"], row["test_mse"] = ([float(s[j]) for s in scores] for j in (0, 1))
        row |= {"updates": [o.updates for o in mine], "seconds": [round(o.seconds, 2) for o in mine]}
        row["seconds_per_update"] = float(np.median([o.seconds / o.updates for o in mine]))
        row["curve"] = mine[0].curve
    return rows


def measure(config: Config) -> dict[str, Any]:
    """Measures the plans, then trains."""
    if config.quick:
        config = dataclasses.replace(config, seconds=2.0, seeds=1, windows=((128, 128), (4096, 4096)))
    job = make_job(ppg(2), HORIZONS, 1, T, TEST_START)
    model = Model(tbptt.LSTM(1, config.hidden), nn.Dense(len(HORIZONS)))
    costs = plans(model, job, 2 if config.quick else 7)
    rows = train_all(model, job, config)
    base = {"last value": baselines.persistence(job.values, 0, job.horizon, *job.test)}
    for order in (64, 256):
        base[f"ridge AR({order})"] = baselines.ridge_ar(job.values, 0, order, job.horizon, T, *job.test)
    best = min(rows, key=lambda row: known.median(row["valid_mse"]))
    tell(rows, base)
    return {
        "curves": {row["name"]: row.pop("curve") for row in rows},
        "known": expectations(costs, rows, best),
        "results": {"T": T, "plans": costs, "rows": rows, "baselines": base, "chosen": best["name"]},
    }


def expectations(costs: list[dict[str, Any]], rows: list[dict[str, Any]], best: dict[str, Any]) -> list[known.Row]:
    """Says what should be seen."""
    by, full = {row["name"]: row for row in costs}, next(row for row in rows if row["full"])
    whole, planned = by["kept whole"], by[PLANNED]
    what, against = f"full gradient by {PLANNED}", "kept whole: 1"
    best_full, half = known.smallest(full["test_mse"]), known.median(full["test_mse"]) / 2
    chosen = f"{best['name']} (chosen on validation): test MSE at equal seconds"
    return [
        known.expect(f"{what}: temporary bytes", planned["bytes"] / whole["bytes"], at_most=0.1, because=against),
        known.expect(f"{what}: seconds", planned["seconds"] / whole["seconds"], at_most=1.5, because=against),
        known.expect(f"{what}: relative difference", planned["difference"], at_most=1e-3),
        known.expect(
            f"{chosen} over that of full BPTT's best run",
            [mse / best_full for mse in best["test_mse"]],
            at_most=1.0,
            of=known.largest,
            because=f"full BPTT's best run has {best_full:.3f} after {int(known.median(full['updates'])):,} updates",
            otherwise="Full BPTT, with its few updates, is as good as the best window here.",
        ),
        known.expect(
            chosen,
            best["test_mse"],
            at_most=half,
            because="half of full BPTT's median",
            otherwise=f"Full BPTT leaves {2 * half:.3f} after {int(known.median(full['updates'])):,} updates; the window's "
            f"median is {known.median(best['test_mse']) / (2 * half):.2f} of that.",
        ),
    ]


def tell(rows: list[dict[str, Any]], base: dict[str, float]) -> None:
    """Prints the table a person reads."""
    table(
        f"{T:,} steps in one sequence, equal training seconds (medians over seeds)",
        ("estimator", "updates", "ms an update", "bytes of an update", "valid MSE", "test MSE"),
        [
            (
                row["name"],
                str(int(known.median(row["updates"]))),
                f"{1e3 * row['seconds_per_update']:.2f}",
                human_bytes(row["temp_bytes"]),
                f"{known.median(row['valid_mse']):.3f}",
                f"{known.median(row['test_mse']):.3f}",
            )
            for row in rows
        ],
    )
    table("without a network", ("baseline", "test MSE"), [(name, f"{mse:.3f}") for name, mse in base.items()])


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws the cost of the plans, error by window, and loss by second."""
    pulse_figure.draw(data, folder)


if __name__ == "__main__":
    program.run(__file__)
