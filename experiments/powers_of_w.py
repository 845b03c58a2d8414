"""Measure the growth of states and gradients under powers of W (claims 2 and 3).

    python -m experiments.powers_of_w            about 10 seconds on two cores

Expected: without a nonlinearity the growth rate of ||h_n|| and of ||dh_n/dh_0|| converges to
log(spectral radius) and never exceeds log(sigma_max) per step; 1.01^1000 is 2.1e4. With tanh,
gradients vanish below gain 1 and explode above it, unless inputs saturate the units.
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
from tbptt.cells import ElmanCarry, ElmanParams
from tbptt.diagnostics import carry_influence, gradient_by_lag, log_bound, spectral_radius

RADII = (0.95, 1.0, 1.01, 1.05)


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """A random W of chosen spectral radius, iterated."""

    hidden: int = 64
    """units"""
    steps: int = 1000
    """largest power n"""
    lag: int = 50
    """lag of the gradient in the phase diagram"""


def linear(a: jax.Array) -> jax.Array:
    """Return the argument; cells compare equal only if their activations do."""
    return a


def random_w(seed: int, hidden: int) -> np.ndarray:
    """Draw a Gaussian matrix and scale it to spectral radius 1."""
    w = np.random.default_rng(seed).normal(size=(hidden, hidden))
    return w / float(spectral_radius(w))


def network(w: jax.Array) -> tuple[tbptt.Elman, Any]:
    """Make the network h' = h w + x, without a nonlinearity."""
    cell = tbptt.Elman(1, len(w), activation=linear, dtype=w.dtype)
    return cell, cell.init(jax.random.key(0))._replace(w_h=w)


@functools.partial(jax.jit, static_argnums=(1, 2))
def growth(w: jax.Array, radii: tuple[float, ...], steps: int) -> dict[str, jax.Array]:
    """Return log ||h_n||, log ||dh_n/dh_0||_2 and n log sigma_max, each `[radii, steps]`."""

    def of(w: jax.Array) -> dict[str, jax.Array]:
        cell, params = network(w)
        start, xs = (
            ElmanCarry(jnp.ones(len(w), w.dtype) / np.sqrt(len(w))),
            jnp.zeros((steps, 1), w.dtype),
        )
        _, hs = tbptt.unroll(cell, params, start, xs)
        influence = carry_influence(cell, params, start, xs).h
        growths = {"state": jnp.log(jnp.linalg.norm(hs, axis=1)), "gradient": jnp.log(influence)}
        return growths | {"bound": log_bound(w, jnp.arange(1, steps + 1))}

    return jax.vmap(lambda radius: of(radius * w))(jnp.asarray(radii, w.dtype))


@functools.partial(jax.jit, static_argnums=1)
def gradient_back(w: jax.Array, lag: int) -> jax.Array:
    """Return the gradient norm `lag` steps back of the loss v h, v = (1, ..., 1) / sqrt(n)."""
    cell, params = network(w)
    v = jnp.ones(len(w), w.dtype) / np.sqrt(len(w))
    return gradient_by_lag(
        cell, params, cell.initial_carry(), jnp.zeros((lag, 1), w.dtype), lambda y: y @ v
    )[-1]


def slope(values: list[float]) -> float:
    """Fit the growth rate per step over the second half, by least squares."""
    half = len(values) // 2
    return float(np.polyfit(np.arange(half, len(values)), values[half:], 1)[0])


def phase(config: Config, gains: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return log10 of the gradient at a lag of tanh networks, by gain of W and input scale."""
    cell, H, steps = tbptt.Elman(config.hidden, config.hidden), config.hidden, config.lag + 50
    rng = np.random.default_rng(config.seed)
    w, noise, h = (
        np.linalg.qr(rng.normal(size=(H, H)))[0],
        rng.normal(size=(steps, H)),
        0.1 * rng.normal(size=H),
    )
    w, noise, h = (jnp.asarray(a, jnp.float32) for a in (w, noise, h))

    def at(gain: jax.Array, scale: jax.Array) -> jax.Array:
        params = ElmanParams(w_x=jnp.eye(H), w_h=gain * w, b=jnp.zeros(H))
        norms = gradient_by_lag(
            cell, params, ElmanCarry(h), scale * noise, lambda y: jnp.sum(y) / jnp.sqrt(y.size)
        )
        return jnp.log10(norms[config.lag - 1])

    grid = jax.jit(jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None)))
    return np.asarray(grid(jnp.asarray(gains, jnp.float32), jnp.asarray(inputs, jnp.float32)))


def measure(config: Config) -> dict[str, Any]:
    """Measure growth for every radius, the gradient at lag 60, and the phase diagram."""
    steps = 250 if config.quick else config.steps
    with jax.enable_x64(True):
        w = random_w(config.seed, config.hidden)
        grown = {name: np.asarray(a) for name, a in growth(jnp.asarray(w), RADII, steps).items()}
        norm = float(gradient_back(jnp.asarray(0.95 * w), 60))
    curves = {
        str(radius): {name: a[i].tolist() for name, a in grown.items()}
        for i, radius in enumerate(RADII)
    }
    exact = np.linalg.norm(
        np.linalg.matrix_power(0.95 * w, 60) @ np.ones(config.hidden) / np.sqrt(config.hidden)
    )
    rates = {
        r: {name: slope(curves[str(r)][name]) for name in ("state", "gradient")} for r in RADII
    }
    worst = max(abs(rates[r][name] - np.log(r)) for r in RADII for name in ("state", "gradient"))
    over = max(max(np.subtract(c["gradient"], c["bound"])) for c in curves.values())
    points = (13, 11) if config.quick else (25, 21)
    gains, inputs = np.linspace(0.6, 1.8, points[0]), np.linspace(0.0, 2.0, points[1])
    map_ = np.maximum(phase(config, gains, inputs), -38.0)  # float32 underflows below 1e-38
    signs = bool(
        map_[gains < 0.95, 0].max() < -1 and rates[1.05]["gradient"] > 0 > rates[0.95]["gradient"]
    )
    return {
        "curves": curves,
        "steps": steps,
        "gains": gains.tolist(),
        "inputs": inputs.tolist(),
        "phase": map_.tolist(),
        "lag": config.lag,
        "claims": [
            program.claim(
                2,
                "‖h_n‖ and ‖∂h_n/∂h_0‖ grow like λⁿ: largest difference between the measured rate "
                "and log λ, over all λ",
                f"{worst:.1e} per step",
                "below 2e-3 per step; and log ‖∂h_n/∂h_0‖ never exceeds n log σ_max",
                worst < 2e-3 and over < 1e-9,
            ),
            program.claim(
                2,
                "1.01 over 1000 steps is already large: 1.01¹⁰⁰⁰",
                f"{1.01**1000:.3g}",
                "2.1e4",
                abs(1.01**1000 / 2.1e4 - 1) < 0.01,
            ),
            program.claim(
                3,
                "the gradient 60 steps back is ‖W⁶⁰ v‖: relative error; gradients explode for λ > "
                "1 and vanish for λ < 1",
                f"{abs(norm / exact - 1):.1e}; {'yes' if signs else 'no'}",
                "below 1e-12; yes",
                abs(norm / exact - 1) < 1e-12 and signs,
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the growth of states and gradients, and the phase diagram."""
    figure, axes = style.panels(
        3, title=f"Powers of a random W (spectral radius λ), and tanh networks at lag {data['lag']}"
    )
    n = np.arange(1, data["steps"] + 1)
    for index, (radius, curve) in enumerate(data["curves"].items()):
        for axis, name in zip(axes[:2], ("state", "gradient"), strict=True):
            axis.plot(
                n, np.asarray(curve[name]) / np.log(10), label=f"λ = {radius}", **style.line(index)
            )
            axis.plot(n, n * np.log10(float(radius)), color=style.GREY, lw=0.8, ls=":")
    axes[0].set(title="‖h$_n$‖ (dotted: λⁿ)", xlabel="n (steps)", ylabel="log₁₀ ‖h$_n$‖ / ‖h$_0$‖")
    axes[1].set(
        title="‖∂h$_n$/∂h$_0$‖ (dotted: λⁿ)",
        xlabel="n (steps)",
        ylabel="log₁₀ largest singular value",
    )
    axes[0].legend(fontsize=9)
    limit = np.percentile(np.abs(data["phase"]), 90)
    image = axes[2].pcolormesh(
        data["inputs"],
        data["gains"],
        data["phase"],
        cmap="PuOr_r",
        vmin=-limit,
        vmax=limit,
        shading="nearest",
    )
    axes[2].contour(
        data["inputs"], data["gains"], data["phase"], levels=[0.0], colors="black", linewidths=1.2
    )
    axes[2].set(
        title="tanh: vanishing and exploding (black: norm 1)",
        xlabel="scale of the inputs",
        ylabel="gain of orthogonal W",
    )
    figure.colorbar(
        image, ax=axes[2], label=f"log₁₀ ‖gradient {data['lag']} steps back‖", extend="both"
    )
    style.save(figure, folder, "powers_of_w")


if __name__ == "__main__":
    program.run(__file__)
