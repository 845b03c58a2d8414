"""Measure Lyapunov exponents, the growth rates of gradients of untrained networks (claim 3).

    python -m experiments.lyapunov            about 30 seconds on two cores

Expected: at the fixed point 0 of a tanh network, where it is linear, the spectrum is
log|eigenvalues of W|. Without input, the largest exponent of a network of gain g < 1 is near log g,
and inputs lower the exponents. The lag at which 1 % of the gradient is left is the one that the
largest exponent predicts.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import tbptt
from experiments.support.common import program, style
from tbptt.cells import initializers
from tbptt.diagnostics import gradient_by_lag, lyapunov_spectrum, memory_horizon

LEFT = 0.01  # fraction of the gradient that defines the horizon


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Spectra of tanh and gated networks."""

    hidden: int = 32
    """units"""
    steps: int = 2000
    """steps over which the exponents are averaged"""


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def spectrum(
    cell: Any, params: Any, scale: float, xs: jax.Array, warmup: int, count: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the exponents from a random carry, and the lag at which LEFT of a gradient remains."""
    start, unravel = ravel_pytree(cell.initial_carry())
    drawn = jnp.asarray(np.random.default_rng(7).normal(size=start.size), start.dtype)
    exponents = lyapunov_spectrum(
        cell, params, unravel(scale * drawn), xs, warmup=warmup, count=count
    ).exponents
    return exponents, memory_horizon(exponents, LEFT)


@functools.partial(jax.jit, static_argnums=0)
def by_lag(cell: Any, params: Any, ends: jax.Array) -> jax.Array:
    """Return the gradient by lag of each of several sequences."""
    return gradient_by_lag(cell, params, cell.initial_carry(ends.shape[1:2]), ends, jnp.sum)


def horizon(cell: Any, params: Any, xs: np.ndarray) -> int | None:
    """Return the lag from which the median gradient stays below LEFT of its value at lag 1."""
    ends = np.stack([xs[len(xs) - 600 - 20 * i : len(xs) - 20 * i] for i in range(16)], axis=1)
    curve = np.median(np.asarray(by_lag(cell, params, jnp.asarray(ends))), axis=1)
    above = np.flatnonzero(curve > LEFT * curve[0])
    return int(above[-1]) + 1 if len(above) and above[-1] + 1 < len(curve) else None


def cells(hidden: int, quick: bool) -> dict[str, tuple[Any, Any]]:
    """Make pairs of cells: one for the initialisation, one that shares a compiled program."""
    lstm, gru = tbptt.LSTM(1, hidden), tbptt.GRU(1, hidden)
    made = {
        "Elman, gain 0.9": (
            tbptt.Elman(1, hidden, recurrent_init=initializers.orthogonal, gain=0.9),
            tbptt.Elman(1, hidden),
        ),
        "GRU": (gru, gru),
        "LSTM": (lstm, lstm),
        # Other parameters, the same program.
        "LSTM, chrono 50": (tbptt.LSTM(1, hidden, longest_lag=50), lstm),
    }
    return {name: pair for name, pair in made.items() if not (quick and name == "GRU")}


def measure(config: Config) -> dict[str, Any]:
    """Measure the exact case, exponents by gain and input, and horizons."""
    H, steps = config.hidden, 500 if config.quick else config.steps
    warmup, key, rng = steps // 4, jax.random.key(config.seed), np.random.default_rng(config.seed)
    noise = jnp.asarray(rng.normal(size=(steps, 1)), jnp.float32)
    # Eigenvalues follow the circular law with radius 1.
    w = jnp.asarray(rng.normal(size=(H, H)) / np.sqrt(H), jnp.float32)
    cell = tbptt.Elman(1, H)
    params = cell.init(key)._replace(w_h=w)
    # With zero carry and input a tanh network stays at 0, where its slope is 1, so every Jacobian
    # is W.
    found = np.sort(np.asarray(spectrum(cell, params, 0.0, 0 * noise, warmup)[0], np.float64))[::-1]
    eigenvalues = np.abs(np.linalg.eigvals(np.asarray(w, np.float64)))
    exact, radius = np.sort(np.log(eigenvalues))[::-1], float(eigenvalues.max())
    # The log-determinant equals the sum of the exponents, also with pairs of complex eigenvalues.
    sum_error = float(abs(found.sum() - exact.sum()))
    gains = np.linspace(0.5, 2.0, 7 if config.quick else 13)

    def at(gain: jax.Array, scale: jax.Array) -> jax.Array:
        return spectrum(cell, params._replace(w_h=gain * w), 0.1, scale * noise, warmup, 1)[0][0]

    scales = (0.0, 0.5, 2.0)
    grid = jax.jit(jax.vmap(jax.vmap(at, in_axes=(0, None)), in_axes=(None, 0)))(
        jnp.asarray(gains), jnp.asarray(scales)
    )
    largest = {
        str(scale): np.asarray(row, np.float64).tolist()
        for scale, row in zip(scales, grid, strict=True)
    }
    below = [i for i, gain in enumerate(gains) if gain * radius < 0.95]
    at_rest = max(abs(largest["0.0"][i] - np.log(gains[i] * radius)) for i in below)
    rows, xs = {}, rng.normal(size=(1000, 1)).astype(np.float32)
    for name, (drawn, cell) in cells(H, config.quick).items():
        p = drawn.init(key)
        exponents, predicted = spectrum(cell, p, 0.1, noise, warmup)
        rows[name] = {
            "exponents": np.asarray(exponents, np.float64).tolist(),
            "predicted": float(predicted),
            "measured": horizon(cell, p, xs),
        }
    ratios = [r["measured"] / r["predicted"] for r in rows.values() if r["measured"]]
    return {
        "exact": exact.tolist(),
        "found": found.tolist(),
        "gains": gains.tolist(),
        "radius": radius,
        "largest": largest,
        "cells": rows,
        "claims": [
            program.claim(
                3,
                "tanh network at its fixed point 0, where it is linear: error of the sum of the "
                "exponents, which is "
                "log|det W|; error of the largest, which is log|λ|",
                f"{sum_error:.1e}; {abs(found[0] - exact[0]):.1e}",
                "below 1e-2 each",
                sum_error < 1e-2 and abs(found[0] - exact[0]) < 1e-2,
            ),
            program.claim(
                3,
                "tanh network of gain g below 1, without input: error of the largest exponent, "
                "log(g · spectral radius)",
                f"{at_rest:.1e}",
                "below 0.02",
                at_rest < 0.02,
            ),
            program.claim(
                3,
                "lag at which 1 % of the gradient is left: measured; predicted from the largest "
                "exponent",
                ", ".join(f"{n}: {r['measured']}; {r['predicted']:.0f}" for n, r in rows.items()),
                "equal within a factor of 2",
                len(ratios) >= 3 and all(0.5 < ratio < 2 for ratio in ratios),
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw exponents by gain, spectra of the cells, and the horizons."""
    figure, axes = style.panels(
        3, title="Lyapunov exponents: below 0 gradients vanish, above they explode"
    )
    for index, (scale, row) in enumerate(data["largest"].items()):
        axes[0].plot(
            data["gains"],
            row,
            marker=style.MARKERS[index],
            ms=4,
            label=f"input scale {scale}",
            **style.line(index),
        )
    axes[0].plot(
        data["gains"],
        np.log(np.array(data["gains"]) * data["radius"]),
        color=style.GREY,
        lw=1,
        ls=":",
        label="log(g λ)",
    )
    axes[0].axhline(0, color="black", lw=0.8)
    axes[0].set(
        xlabel="gain g of a Gaussian W",
        ylabel="largest exponent (nats per step)",
        title="tanh networks",
    )
    axes[0].legend(fontsize=9)
    for index, (name, row) in enumerate(data["cells"].items()):
        share = np.linspace(0, 1, len(row["exponents"]))
        axes[1].plot(share, np.maximum(row["exponents"], -4), label=name, **style.line(index))
        if row["measured"]:
            axes[2].plot(
                row["predicted"],
                row["measured"],
                style.MARKERS[index],
                ms=9,
                color=style.COLORS[index],
                label=name,
            )
    axes[1].axhline(0, color="black", lw=0.8)
    axes[1].set(
        xlabel="relative rank of the exponent", ylabel="exponent (nats per step, clipped at -4)"
    )
    axes[1].set_title("Untrained cells on noise")
    axes[1].legend(fontsize=9)
    both = [
        v for r in data["cells"].values() if r["measured"] for v in (r["predicted"], r["measured"])
    ]
    ends = [min(both) * 0.7, max(both) * 1.4]
    axes[2].plot(ends, ends, color=style.GREY, lw=1, ls=":")
    axes[2].set(
        xscale="log",
        yscale="log",
        xlabel="predicted: log 0.01 / largest exponent",
        ylabel="measured lag",
    )
    style.few_ticks(axes[2].xaxis, axes[2].yaxis)
    axes[2].set_title("Lag at which 1 % of the gradient is left")
    axes[2].legend(fontsize=9)
    style.save(figure, folder, "lyapunov")


if __name__ == "__main__":
    program.run(__file__)
