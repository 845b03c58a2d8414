"""Measure the largest stable learning rate with and without replay of past states.

    python -m experiments.staleness            about 2 minutes on two cores
    python -m experiments.staleness --quick    under 30 seconds

The task is influence balancing, trained by SGD with an update every k1 steps. Two estimators have
gradients that are exact to 1e-2 at fixed parameters. TBPTT(k1, 100) replays its k2 - k1 older steps
under the current parameters. RTRL computes its loss on stale states, which depend on the parameters
of the last 100 steps, that is of 100 updates if k1 = 1. TBPTT from stored states, as in published
simulations, has the same delay: the system is linear, so stored states change the loss but not the
derivative.

Expected: with stale states, k1 = 1 diverges at learning rate 1e-3 and k1 = 10 converges, and the
largest stable rate grows with k1. With replay, every k1 is stable up to the limit of gradient
descent, 2 / 36: here replay removes staleness.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from experiments.support.common import program, style
from experiments.support.common.console import console
from experiments.support.estimators import influence

K2, LOWEST, HIGHEST = 100, 1e-5, 1e-1
# Largest stable rate of gradient descent: the loss is (6 theta + 1)^2 / 2, its curvature 36.
LIMIT = 2 / 36
REPLAYED, STALE = f"TBPTT(k1, {K2}), replayed states", "RTRL, stale states"


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """The largest stable learning rate by k1, from a grid of rates."""

    updates_at_least: int = 400
    """minimal number of updates of every run"""
    steps: int = 20_000
    """minimal number of steps of every run"""
    strides: tuple[int, ...] = (1, 2, 5, 10, 20, 25, 50)
    """values of k1"""
    rates: int = 41
    """number of learning rates between 1e-5 and 1e-1, evenly spaced on a logarithmic scale"""


def make_estimator(name: str, k1: int) -> tbptt.Estimator:
    """Make one of the two estimators."""
    return (
        tbptt.truncated_bptt(influence.loss_fn, k1, K2)
        if name == REPLAYED
        else tbptt.rtrl(influence.loss_fn)
    )


def final_thetas(
    estimator: tbptt.Estimator, k1: int, rates: np.ndarray, updates: int
) -> np.ndarray:
    """Train by SGD with all rates at once; return theta after the updates, `[rates]`.

    for update in range(updates): theta -= rate * estimate(theta, memory, k1 steps).grads
    """
    batch, theta = influence.steps(k1), jnp.asarray(influence.START)

    @jax.jit
    @jax.vmap
    def run(rate: jax.Array) -> jax.Array:
        def update(state: Any, _: None) -> tuple[Any, None]:
            theta, memory = state
            gradient = estimator.estimate(theta, memory, batch)
            return (theta - rate * gradient.grads, gradient.memory), None

        start = (theta, estimator.init(theta, jnp.ones(influence.N), batch))
        return jax.lax.scan(update, start, length=updates)[0][0]

    return np.asarray(run(jnp.asarray(rates)))


def boundary(
    name: str, k1: int, rates: np.ndarray, updates: int
) -> tuple[dict[str, Any], list[float | None]]:
    """Return a row with the largest stable rate, and theta after training with each rate."""
    thetas = final_thetas(make_estimator(name, k1), k1, rates, updates)
    with np.errstate(invalid="ignore"):
        # False for NaN.
        stable = np.abs(thetas - influence.STAR) < abs(influence.START - influence.STAR)
    first_bad = int(np.argmin(stable)) if not stable.all() else len(rates)
    largest = float(rates[first_bad - 1]) if first_bad else None
    console.print(
        f"{name:28} k1 = {k1:3d}: stable up to lr = "
        f"{'none' if largest is None else f'{largest:.1e}'}"
    )
    row = {"estimator": name, "k1": k1, "largest_stable_lr": largest}
    return row, [float(theta) if np.isfinite(theta) else None for theta in thetas]


def measure(config: Config) -> dict[str, Any]:
    """Measure the stability boundary of both estimators for every k1."""
    strides = (1, 10, 50) if config.quick else config.strides
    steps = 6000 if config.quick else config.steps
    rates = np.geomspace(LOWEST, HIGHEST, config.rates)
    rows, thetas, at = [], {}, {}
    with jax.enable_x64(True):
        for name in (REPLAYED, STALE):
            for k1 in (1, 10):
                theta = final_thetas(
                    make_estimator(name, k1), k1, np.asarray([1e-3]), max(steps // k1, 1000)
                )[0]
                at[name, k1] = influence.verdict(float(theta), 5e-3)
            found = [
                boundary(name, k1, rates, max(steps // k1, config.updates_at_least))
                for k1 in strides
            ]
            rows += [row for row, _ in found]
            thetas[name] = [after for _, after in found]
    limits = {
        name: [r["largest_stable_lr"] or 0.0 for r in rows if r["estimator"] == name]
        for name in thetas
    }
    ratio = rates[1] / rates[0]
    was, replayed = limits[STALE], limits[REPLAYED]
    return {
        "rates": rates.tolist(),
        "strides": strides,
        "thetas": thetas,
        "results": {
            "rows": rows,
            "verdicts_at_1e-3": {f"{name}, k1={k1}": v for (name, k1), v in at.items()},
        },
        "claims": [
            program.claim(
                1,
                "stale states, lr 1e-3: k1 = 1; k1 = 10",
                f"{at[STALE, 1]}; {at[STALE, 10]}",
                "diverged; converged",
                (at[STALE, 1], at[STALE, 10]) == ("diverged", "converged"),
            ),
            program.claim(
                2,
                "stale states: largest stable lr by k1",
                ", ".join(f"{k1}: {limit:.1e}" for k1, limit in zip(strides, was, strict=True)),
                "does not decrease with k1, and at the largest k1 is at least 5 times that at k1 = "
                "1",
                was == sorted(was) and was[-1] >= 5 * was[0] > 0,
            ),
            program.claim(
                3,
                "replayed states: largest stable lr by k1",
                ", ".join(
                    f"{k1}: {limit:.1e}" for k1, limit in zip(strides, replayed, strict=True)
                ),
                f"within one step of the grid from 2 / 36 = {LIMIT:.1e}, for k1 <= 25",
                all(
                    LIMIT / ratio <= v <= LIMIT * ratio
                    for k1, v in zip(strides, replayed, strict=True)
                    if k1 <= 25
                ),
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw theta after training over (k1, lr) for both estimators, and the stability boundaries."""
    figure, axes = style.panels(
        3, title="Staleness on influence balancing: SGD, an update every k1 steps", width=4.8
    )
    strides, rates = data["strides"], np.asarray(data["rates"])
    image = None
    for axis, (name, thetas) in zip(axes, data["thetas"].items(), strict=False):
        error = np.abs(np.asarray(thetas, float) - influence.STAR)
        shown = np.log10(np.clip(np.nan_to_num(error, nan=1e3, posinf=1e3), 1e-6, 1e3))
        axis.grid(False)
        image = axis.imshow(shown, cmap="cividis", aspect="auto", origin="lower", vmin=-6, vmax=3)
        ticks = np.arange(0, len(rates), 10)
        axis.set_xticks(ticks, [f"{rates[i]:.0e}" for i in ticks], fontsize=8)
        axis.set_yticks(range(len(strides)), [str(k) for k in strides])
        axis.set(xlabel="learning rate", ylabel="k1 (steps per update)")
        axis.set_title(f"|θ - θ*| after training:\n{name}", fontsize=10)
    bar = figure.colorbar(image, ax=axes[1], ticks=[-6, -3, 0, 3])
    bar.ax.set_yticklabels(["≤1e-6", "1e-3", "1", "≥1e3"])
    for index, name in enumerate(data["thetas"]):
        limits = [
            r["largest_stable_lr"] or np.nan
            for r in data["results"]["rows"]
            if r["estimator"] == name
        ]
        axes[2].plot(strides, limits, marker=style.MARKERS[index], label=name, **style.line(index))
    axes[2].axhline(LIMIT, color=style.GREY, lw=1, ls=":", label="gradient descent: 2 / 36")
    axes[2].set(
        xscale="log",
        yscale="log",
        xlabel="k1 (steps per update)",
        ylabel="largest stable learning rate",
    )
    axes[2].set_title("stability boundary", fontsize=10)
    axes[2].legend(fontsize=8)
    style.save(figure, folder, "staleness")


if __name__ == "__main__":
    program.run(__file__)
