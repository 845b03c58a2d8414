"""Compare a window chosen by its bias with the best window of a sweep, and their total costs.

    python -m experiments.window_choice            about 3 minutes on two cores
    python -m experiments.window_choice --quick    under 40 seconds; its claims are not judged

The task is the forecast of the pulse recording of `experiments.window_tradeoff`, and all runs have
the same training time. The sweep trains TBPTT(50, k2) for each k2 and selects the lowest validation
error. `adaptive_bptt` trains once with the smallest window whose bound on the relative bias is
below delta. Expected: one adaptive run costs a fraction of the sweep. The smallest bias need not
give the lowest error: at equal seconds a longer window makes fewer updates.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

import tbptt
from experiments.support.common import program, style
from experiments.support.common.console import console
from experiments.support.common.forecasting import Model, errors, make_job, train
from experiments.support.common.unroll_choice import choose_unroll
from tbptt.data import ppg

K1, TRAIN_END, TEST_START = 50, 180_000, 200_000


@dataclasses.dataclass(frozen=True)
class Config(program.Trained):
    """A sweep over windows and adaptive runs, at equal training seconds."""

    seconds: float = 15.0
    """training seconds of every run"""
    windows: tuple[int, ...] = (50, 100, 150, 250, 500)
    """values of k2 to choose from, multiples of k1 = 50"""
    deltas: tuple[float, ...] = (0.5, 0.1)
    """tolerated relative biases"""
    hidden: int = 64
    """units of the LSTM"""
    batch: int = 36
    """number of segments of the training part, trained side by side"""


def measure(config: Config) -> dict[str, Any]:
    """Train the sweep and the adaptive runs."""
    if config.quick:
        config = dataclasses.replace(
            config, seconds=1.0, windows=(50, 150), deltas=(0.5,), hidden=32
        )
    job = make_job(ppg(2), (8, 16, 24, 32), config.batch, TRAIN_END, TEST_START)
    model = Model(tbptt.LSTM(1, config.hidden), nn.Dense(4), choose_unroll(config.unroll))
    loss_fn = model.loss_fn()
    estimators: dict[str, Any] = {
        f"TBPTT({K1}, {k2})": tbptt.truncated_bptt(loss_fn, K1, k2) for k2 in config.windows
    }
    for delta in config.deltas:
        estimators[f"adaptive, delta {delta}"] = tbptt.adaptive_bptt(
            loss_fn, K1, config.windows, delta, losses=4, every=50
        )
    rows, curves = [], {}
    for name, estimator in estimators.items():
        run = train(
            estimator,
            model,
            job,
            K1,
            lr=6e-3,
            clip=1.0,
            seconds=config.seconds,
            seed=config.seed,
            report=lambda used, loss: None,
        )
        valid, _ = errors(model, run.params, job)
        row = {
            "estimator": name,
            "valid_mse": valid,
            "updates": run.updates,
            "train_seconds": run.train_seconds,
        }
        row |= {
            "compile_seconds": run.compile_seconds,
            "chosen_k2": run.windows[-1] if run.windows else None,
        }
        rows.append(row)
        if run.windows:
            curves[name] = run.windows
        console.print(
            f"{name:22} validation MSE {valid:.4f}  {run.updates} updates  k2 "
            f"{row['chosen_k2'] or '-'}"
        )
    sweep = [row for row in rows if row["chosen_k2"] is None]
    adaptive = [row for row in rows if row["chosen_k2"] is not None]
    best, own = (
        min(sweep, key=lambda r: r["valid_mse"]),
        min(adaptive, key=lambda r: r["valid_mse"]),
    )
    best_k2 = config.windows[sweep.index(best)]
    cost = {"sweep": sum(map(_total, sweep)), "adaptive": _total(own)}
    return {
        "curves": curves,
        "results": {"rows": rows, "seconds": cost},
        "judged": not config.quick,
        "claims": [
            program.claim(
                1,
                "validation MSE: best adaptive run; best of the sweep",
                f"{own['valid_mse']:.4f} ({own['estimator']}); {best['valid_mse']:.4f} "
                f"({best['estimator']})",
                "within 10 %",
                own["valid_mse"] <= 1.1 * best["valid_mse"],
            ),
            program.claim(
                2,
                "seconds including compilation: one adaptive run; the sweep",
                f"{cost['adaptive']:.0f}; {cost['sweep']:.0f}",
                "at most half",
                cost["adaptive"] <= 0.5 * cost["sweep"],
            ),
            program.claim(
                3,
                "k2 at the end of the best adaptive run; of the best of the sweep",
                f"{own['chosen_k2']:.0f}; {best_k2}",
                "equal or adjacent in the list",
                abs(_nearest(own["chosen_k2"], config.windows) - config.windows.index(best_k2))
                <= 1,
            ),
        ],
    }


def _nearest(k2: float, windows: tuple[int, ...]) -> int:
    """Return the index of the window that is nearest to a mean."""
    return int(np.argmin(np.abs(np.asarray(windows) - k2)))


def _total(row: dict[str, Any]) -> float:
    return row["train_seconds"] + row["compile_seconds"]


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the error by window, with the adaptive runs, and the chosen window over training."""
    figure, axes = style.panels(2, title="Pulse recording, equal training seconds", width=5.4)
    rows = data["results"]["rows"]
    sweep = [row for row in rows if row["chosen_k2"] is None]
    k2s = [int(row["estimator"].split(", ")[1].rstrip(")")) for row in sweep]
    axes[0].plot(
        k2s,
        [row["valid_mse"] for row in sweep],
        marker="o",
        label=f"TBPTT({K1}, k2)",
        **style.line(0),
    )
    for index, row in enumerate(r for r in rows if r["chosen_k2"] is not None):
        axes[0].plot(
            row["chosen_k2"],
            row["valid_mse"],
            style.MARKERS[index + 1],
            color=style.COLORS[index + 1],
            ms=9,
            label=f"{row['estimator']} (k2 at the end)",
        )
        curve = data["curves"][row["estimator"]]
        axes[1].plot(
            np.arange(1, len(curve) + 1),
            curve,
            marker=style.MARKERS[index + 1],
            ms=4,
            label=row["estimator"],
            **style.line(index + 1),
        )
    top = 1.3 * max(row["valid_mse"] for row in rows)  # space for the legend
    axes[0].set(xscale="log", xlabel="k2 (steps)", ylabel="validation MSE", ylim=(0, top))
    axes[0].set_xticks(k2s, [str(k) for k in k2s])
    axes[0].minorticks_off()
    axes[0].legend(fontsize=8)
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    axes[1].set(xlabel="epoch", ylabel="k2 chosen (mean over the epoch, steps)", ylim=(0, None))
    axes[1].legend(fontsize=8)
    style.save(figure, folder, "window_choice")


if __name__ == "__main__":
    program.run(__file__)
