"""Measure values and slopes of repeated tanh, whose slope can only vanish (claim 5 of the lecture).

    python -m experiments.repeated_tanh            about 5 seconds; --quick does the same

Expected: the slope is 1 at 0 and below 1 elsewhere, for every n; tanh^n(x) sqrt(2 n / 3) tends to
1. An Elman network with W = I and no input computes exactly this.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from experiments.support.common import program, style
from tbptt.cells.initializers import identity

DEPTHS = (1, 2, 5, 10, 100)


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """The iterated maps and their slopes."""

    points: int = 401
    """number of points on [-3, 3]"""


@functools.partial(jax.jit, static_argnums=1)
def iterate(x: jax.Array, depths: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Apply tanh n times for every n of `depths`, as an Elman network with W = I and no input.

        values[i] = tanh^n(x),    slopes[i] = d tanh^n(x) / dx,    n = depths[i]

    Args:
      x: `[points]`. One unroll gives all depths, and one backward pass per depth the slopes at all
        points.
    """
    cell = tbptt.Elman(1, 1, recurrent_init=identity)
    params, xs = cell.init(jax.random.key(0)), jnp.zeros((max(depths), len(x), 1))

    def values(x: jax.Array) -> jax.Array:
        _, ys = tbptt.unroll(cell, params, type(cell.initial_carry())(x[:, None]), xs)
        return ys[np.asarray(depths) - 1, :, 0]

    reached, pull = jax.vjp(values, x)
    # Each value depends on its own point only, so one cotangent of ones gives the slope at every
    # point.
    ones = jnp.broadcast_to(jnp.eye(len(depths))[:, :, None], (len(depths), *reached.shape))
    return reached, jax.vmap(pull)(ones)[0]


def measure(config: Config) -> dict[str, Any]:
    """Measure values and slopes over [-3, 3], and the slope at 1 by depth."""
    # The last point is for the slope by depth.
    x = np.append(np.linspace(-3, 3, config.points), 1.0)
    depths = np.unique(np.geomspace(1, 1000, 30).astype(int))
    every = tuple(int(n) for n in np.union1d(depths, DEPTHS))
    with jax.enable_x64(True):  # a slope at depth 1,000 is a product of 1,000 factors
        values, slopes = (np.asarray(a) for a in iterate(jnp.asarray(x), every))
    curves = {
        str(n): {
            "value": values[every.index(n), :-1].tolist(),
            "slope": slopes[every.index(n), :-1].tolist(),
        }
        for n in DEPTHS
    }
    reference = x
    for _ in range(100):
        reference = np.tanh(reference)
    at_one = slopes[[every.index(n) for n in depths], -1]
    largest = float(slopes.max())
    scaled = float(values[every.index(1000), -1]) * np.sqrt(2 * 1000 / 3)
    error = float(np.max(np.abs(reference - values[every.index(100)])))
    decay = float(np.polyfit(np.log(depths[-3:]), np.log(at_one[-3:]), 1)[0])
    return {
        "x": x[:-1].tolist(),
        "curves": curves,
        "depths": depths.tolist(),
        "slopes": at_one.tolist(),
        "claims": [
            program.claim(
                5,
                "repeated tanh alone only vanishes: largest slope at any depth; largest difference "
                "of tanh¹⁰⁰ from NumPy",
                f"{largest:.6f}; {error:.1e}",
                "at most 1; below 1e-12",
                largest <= 1 + 1e-12 and error < 1e-12,
            ),
            program.claim(
                5,
                "tanhⁿ(1) √(2n/3) at n = 1000; exponent of n with which the slope at 1 falls",
                f"{scaled:.3f}; {decay:.2f}",
                "1 ± 0.02; -1.5 ± 0.1",
                abs(scaled - 1) < 0.02 and abs(decay + 1.5) < 0.1,
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the maps, their slopes, and the slope by depth."""
    figure, axes = style.panels(
        3, title="tanh applied n times (an Elman network with W = I and no input)"
    )
    for index, (depth, curve) in enumerate(data["curves"].items()):
        for axis, name in zip(axes[:2], ("value", "slope"), strict=True):
            axis.plot(data["x"], curve[name], label=f"n = {depth}", **style.line(index))
    axes[0].set(title="the map", xlabel="x", ylabel="tanhⁿ(x)")
    axes[1].set(title="its slope", xlabel="x", ylabel="d tanhⁿ(x) / dx")
    axes[0].legend(fontsize=9)
    axes[2].plot(data["depths"], data["slopes"], marker="o", ms=4, **style.line(0))
    axes[2].set(
        title="slope at x = 1",
        xlabel="n (times applied)",
        ylabel="d tanhⁿ(x) / dx at 1",
        xscale="log",
        yscale="log",
    )
    style.save(figure, folder, "repeated_tanh")


if __name__ == "__main__":
    program.run(__file__)
