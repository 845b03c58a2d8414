"""Compare estimators on influence balancing, where short windows have a gradient of the wrong sign.

    python -m experiments.influence_balancing            about 2 minutes on two cores
    python -m experiments.influence_balancing --quick    under 30 seconds

Expected: the derivative by TBPTT(k1, k2) equals the closed form to 1e-9 at every (k1, k2), and has
the wrong sign for all k1 = k2 < 110 and for k1 = 1 with k2 < 41. In online training from theta =
0.5 (theta* = -1/6), TBPTT(10, 100), RTRL, UORO and ARTBP converge, and TBPTT(100, 100) and
TBPTT(10, 10) move away or diverge. `experiments.staleness` measures the stable learning rates.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.common import program
from experiments.support.common.console import console
from experiments.support.estimators import influence
from experiments.support.estimators.influence_figure import draw as draw

GRID_K1 = (1, 5, 10, 25, 50, 80, 100, 110, 200)
GRID_K2 = (1, 5, 10, 20, 40, 41, 43, 46, 50, 65, 80, 94, 100, 107, 110, 120, 200)
QUICK_PAIRS = (
    (1, 40),
    (1, 41),
    (1, 100),
    (10, 10),
    (10, 46),
    (10, 100),
    (50, 50),
    (50, 100),
    (100, 100),
    (110, 110),
)
POINTS = 60  # recorded values of theta per run


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """The truncated derivative over (k1, k2), and online training by many estimators."""

    steps: int = 30_000
    """steps of the stream for each run"""
    tolerance: float = 5e-3
    """|theta - theta*| below which a run has converged"""


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings of one run: an estimator, and SGD with an update every `chunk` steps."""

    name: str
    estimator: tbptt.Estimator
    chunk: int
    lr: float
    k1: int | None = None
    k2: int | None = None


def truncated(k1: int, k2: int, lr: float) -> Run:
    """Make a run of TBPTT(k1, k2) with an update every k1 steps."""
    return Run(
        f"TBPTT({k1}, {k2})", tbptt.truncated_bptt(influence.loss_fn, k1, k2), k1, lr, k1, k2
    )


def runs(quick: bool) -> list[Run]:
    """Make the list of runs; a quick one omits the slowest."""
    loss_fn = influence.loss_fn
    windows = [
        (10, 100, 1e-4),
        (100, 100, 1e-4),
        (10, 10, 1e-4),
        (10, 46, 1e-3),
        (10, 100, 1e-3),
        (100, 100, 1e-3),
    ]
    if not quick:
        windows += [
            (1, 1, 1e-4),
            (1, 50, 1e-4),
            (1, 100, 1e-4),
            (110, 110, 1e-4),
            (200, 200, 1e-4),
            (1, 100, 1e-3),
        ]
    artbp = tbptt.randomized_bptt(loss_fn, 1, tbptt.estimators.HeavyTail(50.0))
    return [truncated(*window) for window in windows] + [
        Run("RTRL", tbptt.rtrl(loss_fn), 10, 1e-4),
        Run("UORO", tbptt.uoro(loss_fn), 10, 1e-4),
        Run("ARTBP", artbp, 500, 5e-3),
    ]


def train(run: Run, steps: int, seed: int) -> list[float]:
    """Train online over `steps` steps from s = 1; return theta at POINTS + 1 steps."""
    optimizer = optax.sgd(run.lr)
    part = max(run.chunk, steps // POINTS // run.chunk * run.chunk)
    batch, theta = influence.steps(part), jnp.asarray(influence.START)
    epoch = tbptt.make_train_epoch(run.estimator, optimizer, run.chunk)
    example = influence.steps(run.chunk)
    state = tbptt.init_state(
        run.estimator, optimizer, theta, jnp.ones(influence.N), example, jax.random.key(seed)
    )
    thetas = [float(state.params)]
    for _ in range(steps // part):
        state, _ = epoch(state, batch)
        thetas.append(float(state.params))
    return thetas


def measure(config: Config) -> dict[str, Any]:
    """Measure the grid of derivatives and run the online training."""
    console.print("Measuring the derivative on the grid of (k1, k2) ...")
    pairs = (
        QUICK_PAIRS if config.quick else [(k1, k2) for k1 in GRID_K1 for k2 in GRID_K2 if k2 >= k1]
    )
    grid, curve = influence.derivatives(pairs)
    worst = max(abs(row["measured"] - row["closed_form"]) for row in grid)
    rows, curves = [], {}
    with jax.enable_x64(True):
        for run in runs(config.quick):
            thetas = train(run, config.steps, config.seed)
            row = {
                "estimator": run.name,
                "k1": run.k1,
                "k2": run.k2,
                "lr": run.lr,
                "theta": thetas[-1],
            }
            row["verdict"] = influence.verdict(thetas[-1], config.tolerance)
            rows.append(row | {"chunk": run.chunk, "steps": config.steps})
            curves[f"{run.name}, lr {run.lr:g}"] = thetas
            console.print(f"{run.name:16} lr {run.lr:g}  theta {thetas[-1]:9.5f}  {row['verdict']}")
    at = {(row["estimator"], row["lr"]): row for row in rows}
    good, bad = at["TBPTT(10, 100)", 1e-4], at["TBPTT(100, 100)", 1e-4]
    others = [row for row in rows if row["estimator"] in ("RTRL", "UORO", "ARTBP")]
    return {
        "grid": grid,
        "curve": curve,
        "thetas": curves,
        "results": {"signs": worst, "runs": [_finite(row) for row in rows]},
        "claims": [
            program.claim(
                1,
                "largest error of the derivative over the grid",
                worst,
                "below 1e-9",
                worst < 1e-9,
            ),
            program.claim(
                2,
                "TBPTT(10, 100) at 1e-4: distance from theta* = -1/6",
                abs(good["theta"] - influence.STAR),
                "below 1e-4",
                abs(good["theta"] - influence.STAR) < 1e-4,
            ),
            program.claim(
                3,
                "TBPTT(100, 100) at 1e-4",
                bad["verdict"],
                "wrong_way",
                bad["verdict"] == "wrong_way",
            ),
            program.claim(
                4,
                "RTRL, UORO, ARTBP",
                ", ".join(f"{row['theta']:.4f}" for row in others),
                f"within {config.tolerance:g} of -0.1667",
                all(row["verdict"] == "converged" for row in others),
            ),
        ],
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Replace a non-finite theta by None, as JSON has no NaN.

    The verdict of such a run is "diverged".
    """
    return row | {"theta": row["theta"] if np.isfinite(row["theta"]) else None}


if __name__ == "__main__":
    program.run(__file__)
