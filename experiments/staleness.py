"""Staleness: a loss is computed on states that older parameters made. How fast may one learn, and does replaying help?

    python -m experiments.staleness            about 2 minutes on two cores
    python -m experiments.staleness --quick    under 30 seconds

Influence balancing, SGD, an update every k1 steps, two estimators whose gradients are exact to 1e-2 at fixed parameters:
TBPTT(k1, 100), which replays its k2 - k1 older steps under the CURRENT parameters, and RTRL, whose loss sees the states as
the stream made them, by parameters of up to 100 steps ago; with k1 = 1 these are 100 updates. (TBPTT from stored states, as
published simulations do it, has the same delay: the system is linear, so stored states change the loss and not the
derivative.) Expected: with states as they were, k1 = 1 diverges at lr 1e-3 and k1 = 10 arrives; the largest stable lr grows
with k1. Replayed, every k1 is stable up to the limit of gradient descent itself, 2 / 36: here replay removes staleness.
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
LIMIT = 2 / 36  # of gradient descent: the loss is (6 theta + 1)^2 / 2, its curvature 36
REPLAYED, AS_IT_WAS = f"TBPTT(k1, {K2}), replayed", "RTRL, states as they were"


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """The largest stable learning rate by k1, from a grid of rates that are run side by side."""

    updates_at_least: int = 400
    """updates of every run, at least"""
    steps: int = 20_000
    """steps of every run, at least"""
    strides: tuple[int, ...] = (1, 2, 5, 10, 20, 25, 50)
    """k1"""
    rates: int = 41
    """learning rates between 1e-5 and 1e-1, in equal ratios"""


def make_estimator(name: str, k1: int) -> tbptt.Estimator:
    """Makes one of the two."""
    return tbptt.truncated_bptt(influence.loss_fn, k1, K2) if name == REPLAYED else tbptt.rtrl(influence.loss_fn)


def final_thetas(estimator: tbptt.Estimator, k1: int, rates: np.ndarray, updates: int) -> np.ndarray:
    """Trains by SGD with every rate at once; returns theta after the updates, `[rates]`.

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


def boundary(name: str, k1: int, rates: np.ndarray, updates: int) -> tuple[dict[str, Any], list[float | None]]:
    """Finds the largest rate below which all are stable; and theta after training with each."""
    thetas = final_thetas(make_estimator(name, k1), k1, rates, updates)
    with np.errstate(invalid="ignore"):
        stable = np.abs(thetas - influence.STAR) < abs(influence.START - influence.STAR)  # NaN is not
    first_bad = int(np.argmin(stable)) if not stable.all() else len(rates)
    largest = float(rates[first_bad - 1]) if first_bad else None
    console.print(f"{name:28} k1 = {k1:3d}: stable up to lr = {'none' if largest is None else f'{largest:.1e}'}")
    row = {"estimator": name, "k1": k1, "largest_stable_lr": largest}
    return row, [float(theta) if np.isfinite(theta) else None for theta in thetas]


def measure(config: Config) -> dict[str, Any]:
    """Finds the boundary of both for every stride."""
    strides = (1, 10, 50) if config.quick else config.strides
    steps = 6000 if config.quick else config.steps
    rates = np.geomspace(LOWEST, HIGHEST, config.rates)
    rows, thetas, at = [], {}, {}
    with jax.enable_x64(True):
        for name in (REPLAYED, AS_IT_WAS):
            for k1 in (1, 10):
                theta = final_thetas(make_estimator(name, k1), k1, np.asarray([1e-3]), max(steps // k1, 1000))[0]
                at[name, k1] = influence.verdict(float(theta), 5e-3)
            found = [boundary(name, k1, rates, max(steps // k1, config.updates_at_least)) for k1 in strides]
            rows += [row for row, _ in found]
            thetas[name] = [after for _, after in found]
    limits = {name: [r["largest_stable_lr"] or 0.0 for r in rows if r["estimator"] == name] for name in thetas}
    ratio = rates[1] / rates[0]
    was, replayed = limits[AS_IT_WAS], limits[REPLAYED]
    return {
        "rates": rates.tolist(),
        "strides": strides,
        "thetas": thetas,
        "results": {"rows": rows, "verdicts_at_1e-3": {f"{name}, k1={k1}": v for (name, k1), v in at.items()}},
        "claims": [
            program.claim(
                1,
                "states as they were, lr 1e-3: k1 = 1; k1 = 10",
                f"{at[AS_IT_WAS, 1]}; {at[AS_IT_WAS, 10]}",
                "diverged; converged",
                (at[AS_IT_WAS, 1], at[AS_IT_WAS, 10]) == ("diverged", "converged"),
            ),
            program.claim(
                2,
                "states as they were: largest stable lr by k1",
                ", ".join(f"{k1}: {limit:.1e}" for k1, limit in zip(strides, was, strict=True)),
                "does not fall with k1, and at the longest is at least 5 times that at k1 = 1",
                was == sorted(was) and was[-1] >= 5 * was[0] > 0,
            ),
            program.claim(
                3,
                "replayed: largest stable lr by k1",
                ", ".join(f"{k1}: {limit:.1e}" for k1, limit in zip(strides, replayed, strict=True)),
                f"within a step of the grid of 2 / 36 = {LIMIT:.1e}, for k1 <= 25",
                all(LIMIT / ratio <= v <= LIMIT * ratio for k1, v in zip(strides, replayed, strict=True) if k1 <= 25),
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws theta after training over (k1, lr) for both, and the boundaries."""
    figure, axes = style.panels(3, title="Staleness on influence balancing: SGD, an update every k1 steps", width=4.8)
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
        axis.set(xlabel="learning rate", ylabel="k1 (steps an update)")
        axis.set_title(f"|θ - θ*| after training:\n{name}", fontsize=10)
    bar = figure.colorbar(image, ax=axes[1], ticks=[-6, -3, 0, 3])
    bar.ax.set_yticklabels(["≤1e-6", "1e-3", "1", "≥1e3"])
    for index, name in enumerate(data["thetas"]):
        limits = [r["largest_stable_lr"] or np.nan for r in data["results"]["rows"] if r["estimator"] == name]
        axes[2].plot(strides, limits, marker=style.MARKERS[index], label=name, **style.line(index))
    axes[2].axhline(LIMIT, color=style.GREY, lw=1, ls=":", label="gradient descent: 2 / 36")
    axes[2].set(xscale="log", yscale="log", xlabel="k1 (steps an update)", ylabel="largest stable learning rate")
    axes[2].set_title("the boundary of stability", fontsize=10)
    axes[2].legend(fontsize=8)
    style.save(figure, folder, "staleness")


if __name__ == "__main__":
    program.run(__file__)
