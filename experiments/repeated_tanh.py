"""Repeated tanh: tanh, tanh of tanh, ... get ever flatter; this alone only vanishes (claim 5 of the lecture).

    python -m experiments.repeated_tanh            about 5 seconds

Expected: the slope is 1 at 0 and below 1 elsewhere, for every n; tanh^n(x) sqrt(2 n / 3) tends to 1. An Elman network
with W = I and no input computes exactly this.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from experiments.support import program, style
from tbptt.cells.initializers import identity

DEPTHS = (1, 2, 5, 10, 100)


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """The iterated maps and their slopes."""

    points: int = 401
    """points on [-3, 3]"""


def iterate(x: jax.Array, depth: int) -> jax.Array:
    """Applies tanh `depth` times, as an Elman network with W = I, no input and one unit."""
    cell = tbptt.Elman(1, 1, recurrent_init=identity)
    carry, _ = tbptt.unroll(cell, cell.init(jax.random.key(0)), type(cell.initial_carry())(x[None]), jnp.zeros((depth, 1)))
    return carry.h[0]


def measure(config: Config) -> dict[str, Any]:
    """Measures values and slopes over [-3, 3], and the slope at 1 by depth."""
    x = jnp.linspace(-3, 3, config.points)
    curves = {}
    for depth in DEPTHS:
        value, slope = jax.vmap(jax.value_and_grad(lambda a, depth=depth: iterate(a, depth)))(x)
        curves[str(depth)] = {"value": np.asarray(value).tolist(), "slope": np.asarray(slope).tolist()}
    by_hand = np.asarray(x, np.float64)
    for _ in range(100):
        by_hand = np.tanh(by_hand)
    depths = np.unique(np.geomspace(1, 300 if config.quick else 1000, 10 if config.quick else 30).astype(int))
    slopes = [float(jax.grad(lambda a, d=int(d): iterate(a, d))(jnp.array(1.0))) for d in depths]
    largest = max(max(curve["slope"]) for curve in curves.values())
    scaled = float(iterate(jnp.array(1.0), 1000)) * np.sqrt(2 * 1000 / 3)
    error = float(np.max(np.abs(by_hand - curves["100"]["value"])))
    decay = float(np.polyfit(np.log(depths[-3:]), np.log(slopes[-3:]), 1)[0])
    return {
        "x": np.asarray(x).tolist(),
        "curves": curves,
        "depths": depths.tolist(),
        "slopes": slopes,
        "claims": [
            program.claim(
                5,
                "repeated tanh alone only vanishes: the largest slope at any depth",
                round(largest, 6),
                "at most 1",
                largest <= 1 + 1e-6 and error < 1e-6,
            ),
            program.claim(
                5,
                "tanhⁿ(1) √(2n/3) at n = 1000; the slope at 1 falls like n to the power",
                f"{scaled:.3f}; {decay:.2f}",
                "1 ± 0.02; -1.5 ± 0.1",
                abs(scaled - 1) < 0.02 and abs(decay + 1.5) < 0.1,
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws the maps, their slopes, and the slope by depth."""
    figure, axes = style.panels(3, title="tanh applied n times (an Elman network with W = I and no input)")
    for index, (depth, curve) in enumerate(data["curves"].items()):
        for axis, name in zip(axes[:2], ("value", "slope"), strict=True):
            axis.plot(data["x"], curve[name], label=f"n = {depth}", **style.line(index))
    axes[0].set(title="the map", xlabel="x", ylabel="tanhⁿ(x)")
    axes[1].set(title="its slope", xlabel="x", ylabel="d tanhⁿ(x) / dx")
    axes[0].legend(fontsize=9)
    axes[2].plot(data["depths"], data["slopes"], marker="o", ms=4, **style.line(0))
    axes[2].set(
        title="slope at x = 1", xlabel="n (times applied)", ylabel="d tanhⁿ(x) / dx at 1", xscale="log", yscale="log"
    )
    style.save(figure, folder, "repeated_tanh")


if __name__ == "__main__":
    program.run(__file__)
