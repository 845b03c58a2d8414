"""Measure gradient, cost and error of full and truncated BPTT (claims 1, 8, 9, 11 and 12).

    python -m experiments.truncation            about 60 seconds on two cores

Expected: BPTT equals the explicit sum over time. Each additional step costs a full gradient at
least the memory of h and c and at most what `tbptt.memory_plan` predicts, and a truncated gradient
only a copy of its data. After equal seconds the error of truncated training is far below that of
full BPTT, and the best window lies inside the range tried. TBPTT(10, 100) has the correct
derivative where TBPTT(100, 100) has the wrong sign.
"""

import dataclasses
import functools
import itertools
import math
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from experiments.support.common import program, style
from experiments.support.common.equal_time import clock
from experiments.support.common.forecasting import Job, Model, estimator_of, make_job, train
from experiments.support.common.unroll_choice import choose_unroll
from experiments.support.estimators import influence
from experiments.support.lecture.reference import bptt_errors
from tbptt.data import forecast_pairs, ppg, standardise

WINDOWS, QUICK_WINDOWS = (10, 50, 250, 1000), (1, 50)
FULL = 5000  # steps of full BPTT: a batch row
PAIRS = ((1, 100), (10, 100), (50, 100), (100, 100), (110, 110), (200, 200))
QUICK_PAIRS = ((10, 100), (100, 100), (200, 200))
K = 128  # the window whose cost is measured


@dataclasses.dataclass(frozen=True)
class Config(program.Trained):
    """Definitions, cost by length, and error by window at equal seconds."""

    seconds: float = 8.0
    """training seconds for each window; on a CPU, of the processor"""
    lengths: tuple[int, ...] = (1024, 8192, 65_536, 131_072)
    """T of one unbroken sequence, for the cost; ascending, the last two are compared"""
    hidden: int = 32
    """units"""


def cost(length: int, hidden: int, unroll: tbptt.UnrollFn, repeats: int) -> dict[str, Any]:
    """Measure one gradient over `length` steps of both pulse recordings, full and TBPTT(K, K).

    Returns:
      seconds, compile_seconds and bytes (temporary, as XLA plans them) of both, and the quantities
      for comparison: plan_bytes, the prediction of `tbptt.memory_plan` for the full gradient;
      carry_bytes, those of h and c of one step; step_bytes, those of input and target of one step.
    """
    scaled = [standardise(ppg(subject).values[:, :1], 180_000)[0] for subject in (1, 2)]
    pairs = zip(*(forecast_pairs(values, 0, (32,)) for values in scaled), strict=True)
    batch = tbptt.Batch(
        *(jnp.asarray(np.stack([a[:length] for a in both], axis=1), jnp.float32) for both in pairs)
    )
    cell, readout = tbptt.LSTM(1, hidden), nn.Dense(1)
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error, unroll=unroll)
    params, carry = tbptt.init_params(jax.random.key(0), cell, readout), cell.initial_carry((2,))
    row: dict[str, Any] = {
        "length": length,
        "plan_bytes": tbptt.memory_plan(cell, readout, params, batch).predicted_bytes,
        "carry_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(carry)),
        "step_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(batch)) / length,
    }
    for name, estimator in (
        ("full", tbptt.full_bptt(loss_fn)),
        ("truncated", tbptt.truncated_bptt(loss_fn, K, K)),
    ):
        memory = estimator.init(params, carry, batch)
        begin = time.perf_counter()
        jitted: Any = jax.jit(lambda p, m, b, e=estimator: e.estimate(p, m, b).grads)
        with program.optimizations(most=True):  # as in a user's program
            compiled = jitted.lower(params, memory, batch).compile()
        row[f"{name}_compile_seconds"] = time.perf_counter() - begin
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            jax.block_until_ready(compiled(params, memory, batch))
            seconds.append(time.perf_counter() - begin)
        row[f"{name}_seconds"] = float(np.median(seconds))
        row[f"{name}_bytes"] = compiled.memory_analysis().temp_size_in_bytes
    return row


def by_window(config: Config) -> list[dict[str, Any]]:
    """Train with every window for the same seconds, and last by full BPTT."""
    batch, end = (12, 60_000) if config.quick else (36, 180_000)
    job = make_job(ppg(2), (32,), batch, end, end + 20_000)
    model = Model(tbptt.LSTM(1, config.hidden), nn.Dense(1), choose_unroll(config.unroll))
    seconds = 0.5 if config.quick else config.seconds
    rows = []
    for k in (*(QUICK_WINDOWS if config.quick else WINDOWS), FULL):
        estimator = tbptt.full_bptt(model.loss_fn()) if k == FULL else estimator_of(model, k, k)
        run = train(
            estimator,
            model,
            job,
            k,
            lr=6e-3,
            clip=1.0,
            seconds=seconds,
            seed=config.seed,
            clock=clock,
        )
        rows.append(
            {"k": k, "updates": run.updates, "valid_mse": valid_error(model, run.params, job)}
        )
    return rows


def valid_error(model: Model, params: Any, job: Job) -> float:
    """Return the validation error of four batch rows, each with a warm-up of 500 steps."""
    start, end = job.valid
    length = (end - start - job.horizon) // 4
    inputs, targets = (
        job.values[first : first + 4 * length, 0].reshape(4, length).T
        for first in (start, start + job.horizon)
    )
    outputs = np.asarray(
        forecast(model, params, jnp.asarray(inputs[..., None], jnp.float32)), np.float64
    )
    return float(np.mean((outputs - targets)[500:] ** 2))


@functools.partial(jax.jit, static_argnums=0)
def forecast(model: Model, params: Any, inputs: jax.Array) -> jax.Array:
    """Return the forecasts of the last horizon, `[T, rows]`."""
    carry = model.cell.initial_carry(inputs.shape[1:2])
    batch = tbptt.Batch(inputs, None)
    return tbptt.predict(model.cell, model.readout, params, carry, batch, unroll=model.unroll)[1][
        ..., -1
    ]


def memory_claims(shorter: dict[str, Any], longer: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the memory of a gradient with its lower bound and the documented formula.

    Full BPTT without rematerialisation keeps h and c of every step, and also outputs and their
    cotangents, as the formula of `tbptt.memory_plan` states. Truncated BPTT keeps the residuals of
    one window and a copy of the data, which it splits into windows.
    """
    steps, times = longer["length"] - shorter["length"], longer["length"] / shorter["length"]
    each = {
        name: (longer[f"{name}_bytes"] - shorter[f"{name}_bytes"]) / steps
        for name in ("full", "truncated")
    }
    grown = {name: longer[f"{name}_bytes"] / shorter[f"{name}_bytes"] for name in each}
    planned = (longer["plan_bytes"] - shorter["plan_bytes"]) / steps
    least, most, data = longer["carry_bytes"], 1.05 * planned, longer["step_bytes"]
    mebibytes = {name: longer[f"{name}_bytes"] / 2**20 for name in each}
    seconds, compiling = (
        [f"{longer[f'{name}_{what}']:.1f} s" for name in each]
        for what in ("seconds", "compile_seconds")
    )
    return [
        program.claim(
            8,
            f"memory of a gradient over two recordings of {longer['length']:,} steps, and its "
            f"ratio to that over "
            f"{shorter['length']:,} steps: full BPTT; TBPTT({K}, {K})",
            "; ".join(f"{mebibytes[name]:.1f} MiB (×{grown[name]:.2f})" for name in each)
            + f". Time of one gradient {' and '.join(seconds)}; to compile it "
            f"{' and '.join(compiling)}",
            f"full BPTT grows as T: ×{0.85 * times:.2f} to ×{1.05 * times:.2f}, as the work space "
            f"of a block of steps "
            "is constant; TBPTT needs at most a tenth of it. The times are not judged",
            0.85 * times <= grown["full"] <= 1.05 * times
            and mebibytes["truncated"] < 0.1 * mebibytes["full"],
        ),
        program.claim(
            8,
            f"memory that one more step costs: full BPTT; TBPTT({K}, {K})",
            "; ".join(f"{value:.1f} bytes" for value in each.values()),
            f"full BPTT: at least h and c of the step, {least} bytes, and at most what "
            f"tbptt.memory_plan predicts, "
            f"{planned:.0f} bytes + 5 %; TBPTT: at most a copy of the step's input and target, "
            f"{data:.0f} bytes + 5 %",
            least <= each["full"] <= most and each["truncated"] <= 1.05 * data,
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """Measure the definitions, the cost and the sweep."""
    if len(config.lengths) < 2:
        raise ValueError(
            f"--lengths must be at least two numbers of steps, which are compared; got "
            f"{config.lengths}"
        )
    hand, differences = bptt_errors(config.seed)
    lengths = [n // 2 for n in config.lengths[-2:]] if config.quick else config.lengths
    unroll = choose_unroll(config.unroll)
    costs = [cost(length, config.hidden, unroll, 1 if config.quick else 3) for length in lengths]
    rows = by_window(config)
    best, full = min(rows, key=lambda r: r["valid_mse"]), rows[-1]
    middle = next(r for r in rows if r["k"] == 50)
    derivatives, curve = influence.derivatives(QUICK_PAIRS if config.quick else PAIRS)
    worst = max(abs(r["measured"] - r["closed_form"]) for r in derivatives)
    sign = {(r["k1"], r["k2"]): r["measured"] for r in derivatives}
    return {
        "cost": costs,
        "rows": rows,
        "derivatives": derivatives,
        "curve": curve,
        "claims": [
            program.claim(
                1,
                "relative error of BPTT against the explicit sum over time; against finite "
                "differences",
                f"{hand:.1e}; {differences:.1e}",
                "below 1e-12; below 1e-7",
                hand < 1e-12 and differences < 1e-7,
            ),
            *memory_claims(*costs[-2:]),
            program.claim(
                9,
                "updates and validation error after equal training seconds: TBPTT(50, 50); full "
                "BPTT",
                "; ".join(f"{r['updates']} updates, {r['valid_mse']:.3f}" for r in (middle, full)),
                "TBPTT: more updates, lower error",
                middle["valid_mse"] < full["valid_mse"] and middle["updates"] > full["updates"],
            ),
            program.claim(
                11,
                "validation error by window k1 = k2 after equal training seconds; 5000 is full "
                "BPTT",
                ", ".join(f"{r['k']}: {r['valid_mse']:.3f}" for r in rows) + f"; best {best['k']}",
                "the best window is neither the shortest nor the longest",
                best["k"] not in (rows[0]["k"], rows[-1]["k"]),
            ),
            program.claim(
                12,
                "k1 may differ from k2: mean derivative by TBPTT(10, 100); by TBPTT(100, 100); "
                "largest error against "
                "the closed form",
                f"{sign[(10, 100)]:.3f}; {sign[(100, 100)]:+.3f}; {worst:.0e}",
                "-6.00 (the true derivative is -6); +0.58, which has the wrong sign; below 1e-9",
                worst < 1e-9 and abs(sign[(10, 100)] + 6) < 0.01 and sign[(100, 100)] > 0,
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw cost by length, error by window, and the derivative by age."""
    figure, axes = style.panels(3, title="Full and truncated BPTT: memory, training, derivatives")
    lengths = [r["length"] for r in data["cost"]]
    for index, name in enumerate(("full", "truncated")):
        label = "full BPTT" if name == "full" else "TBPTT(128, 128)"
        sizes = [r[f"{name}_bytes"] / 2**20 for r in data["cost"]]
        axes[0].plot(lengths, sizes, marker=style.MARKERS[index], label=label, **style.line(index))
        for x, y, r in zip(lengths, sizes, data["cost"], strict=True):
            text = f"{r[f'{name}_seconds'] * 1e3:.0f} ms"
            axes[0].annotate(
                text,
                (x, y),
                xytext=(0, 7 if index == 0 else -14),
                textcoords="offset points",
                fontsize=8,
                ha="center",
            )
    axes[0].set(
        xscale="log",
        yscale="log",
        xlabel="T (steps of two recordings)",
        ylabel="temporary memory of one gradient (MiB)",
    )
    axes[0].set_title("Long recordings (numbers: time of one gradient)")
    axes[0].margins(0.2)
    # Only ticks whose labels do not overlap.
    ticks = [
        a for a, b in itertools.pairwise([*lengths, math.inf]) if len(lengths) < 3 or b > 3 * a
    ]
    axes[0].set_xticks(ticks, [f"{length:,}" for length in ticks])
    axes[0].minorticks_off()
    axes[0].legend(fontsize=9, loc="upper left")
    rows = data["rows"]
    axes[1].plot(
        [r["k"] for r in rows], [r["valid_mse"] for r in rows], marker="o", **style.line(0)
    )
    for r in rows:
        axes[1].annotate(
            f"{r['updates']} updates",
            (r["k"], r["valid_mse"]),
            xytext=(0, 8),
            textcoords="offset points",
            fontsize=8,
            ha="center",
        )
    axes[1].set(
        xscale="log", xlabel="window k1 = k2 (steps; 5000 is full BPTT)", ylabel="validation MSE"
    )
    axes[1].set_title("Pulse recording, equal training seconds")
    axes[1].set_ylim(0, 1.15 * max(r["valid_mse"] for r in rows))
    axes[1].margins(x=0.15)
    ages = np.arange(1, len(data["curve"]) + 1)
    axes[2].plot(ages, data["curve"], label="derivative of a loss of this age", **style.line(0))
    for index, r in enumerate(data["derivatives"]):
        axes[2].plot(
            r["k2"],
            r["measured"],
            style.MARKERS[index + 1],
            color=style.COLORS[index + 1],
            ms=8,
            label=f"TBPTT({r['k1']}, {r['k2']})",
        )
    axes[2].axhline(-6, color=style.GREY, lw=1, ls=":")
    axes[2].axhline(0, color="black", lw=0.8)
    axes[2].set(
        xlabel="steps the gradient flows back",
        ylabel="∂s₀/∂θ (true: -6, dotted)",
        title="Influence balancing",
    )
    axes[2].legend(fontsize=8)
    style.save(figure, folder, "truncation")


if __name__ == "__main__":
    program.run(__file__)
