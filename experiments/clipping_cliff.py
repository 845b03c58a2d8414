"""Measure gradient clipping on a surface with a cliff and in training (claim 6 of the lecture).

    python -m experiments.clipping_cliff            about 20 seconds on two cores

Expected: on x' = w sigmoid(x) + b, 50 steps, E = (sigmoid(x_50) - 0.7)^2, the largest |dE/dw| on
the grid is 1754 (finite differences over the grid give 74.3) and the median is 0.022. About a fifth
of the plain gradient descents make a step longer than 1. A clipped step is at most
lr max_norm = 0.02 long by construction, so the benefit of clipping is measured by where the
descents end. For starts whose plain descent makes a long step, the median error is 15 times lower
with clipping, but no fewer descents end at an error above 0.3. g* has the direction of g and norm
max_norm to rounding. After Pascanu, Mikolov and Bengio 2013.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.common import program, style, targets
from experiments.support.lecture.cliff import descend, final_errors, surface
from experiments.support.lecture.clipping_sweep import sweep_max_norm


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """The error surface, two descents over it, and a sweep of max_norm on a training run."""

    lr: float = 0.1
    """learning rate of the descents on the surface"""
    max_norm: float = 0.2
    """norm at which the gradients of the clipped descent are clipped"""
    updates: int = 600
    """updates of each run of the sweep"""


def identity_error() -> tuple[float, float]:
    """Return the error of a clipped gradient in norm, and in direction (1 - cosine)."""
    draw = np.random.default_rng(1).normal(size=(40, 3))
    g = {"a": jnp.asarray(30 * draw, jnp.float32), "b": jnp.asarray(np.arange(7), jnp.float32)}
    clipped = jax.jit(lambda g: optax.clip_by_global_norm(1.5).update(g, optax.EmptyState())[0])(g)
    a, b = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]).astype(np.float64)
        for t in (g, clipped)
    )
    return float(abs(np.linalg.norm(b) - 1.5) / 1.5), float(
        1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    )


def measure(config: Config) -> dict[str, Any]:
    """Measure the surface, the two paths and the sweep."""
    ws, bs = np.linspace(4, 7, 601), np.linspace(-3, -2, 401)
    error, slope = surface(ws, bs)
    top = np.unravel_index(np.argmax(np.abs(slope)), slope.shape)
    exact, median = float(np.abs(slope).max()), float(np.median(np.abs(slope)))
    # Within one grid spacing of 0.005 the cliff is a jump, so a finite difference gives a small
    # part of its slope.
    difference = float(np.abs(np.diff(error, axis=1)).max() / (ws[1] - ws[0]))
    points = (27, 19) if config.quick else (53, 37)
    axes = np.linspace(4.2, 6.8, points[0]), np.linspace(-2.95, -2.05, points[1])
    starts = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    paths = descend(config.lr, (math.inf, config.max_norm), starts, 60)
    longest = [np.max(np.linalg.norm(np.diff(p, axis=1), axis=2), axis=1) for p in paths]
    leaps = longest[0] > 1
    ends = final_errors(paths)
    left = {
        n: [float(np.mean(e[of] > 0.3)) for e in ends]
        for n, of in (("all", leaps | True), ("leap", leaps))
    }
    medians = [float(np.median(e[leaps])) for e in ends]
    # The figure shows the start whose plain descent makes the most steps before its first long one.
    first = np.argmax(np.linalg.norm(np.diff(paths[0], axis=1), axis=2) > 1, axis=1)
    shown = int(np.argmax(first))
    free, held = paths[0][shown, : first[shown] + 2], paths[1][shown]
    norm_error, direction_error = identity_error()
    rows = sweep_max_norm(60 if config.quick else config.updates, config.seed)
    best = min((r for r in rows if r["loss"] is not None), key=lambda r: r["loss"])
    unclipped = next(r for r in rows if r["max_norm"] is None)
    return {
        "ws": ws[::4].tolist(),
        "bs": bs[::4].tolist(),
        "error": error[::4, ::4].tolist(),
        "free": free.tolist(),
        "held": held.tolist(),
        "sweep": rows,
        "max_norm": config.max_norm,
        "claims": [
            program.claim(
                6,
                "error surface with a cliff: largest |dE/dw|, at (w, b); largest by finite "
                "differences over the grid; "
                "median of |dE/dw|",
                f"{exact:.0f} at ({ws[top[1]]:.2f}, {bs[top[0]]:.3f}); {difference:.1f}; "
                f"{median:.4f}",
                "1754 at (4.94, -2.575); 74.3; 0.0217 (the formulas in float64)",
                abs(exact / 1754 - 1) < 0.01
                and abs(difference - 74.3) < 0.1
                and abs(median - 0.02175) < 2e-4,
            ),
            program.claim(
                6,
                f"fraction of {len(starts)} plain descents with a step longer than 1; length of "
                f"the longest clipped step",
                f"{leaps.mean():.3f}; {longest[1].max():.4f}",
                f"above 0.1; at most lr max_norm = {config.lr * config.max_norm:.4g}, "
                "by construction",
                leaps.mean() > 0.1 and longest[1].max() <= config.lr * config.max_norm * 1.001,
            ),
            program.claim(
                6,
                "error after 60 steps without and with clipping. For starts whose plain descent "
                "has a step longer than 1: "
                "median; fraction above 0.3. For all starts: fraction above 0.3",
                f"{medians[0]:.4f} and {medians[1]:.4f}; {left['leap'][0]:.3f} and "
                f"{left['leap'][1]:.3f}; "
                f"{left['all'][0]:.3f} and {left['all'][1]:.3f}",
                "the median is lower with clipping; the fractions are not judged, as clipping need "
                "not lower them",
                medians[1] < medians[0],
            ),
            program.claim(
                6,
                "clipping keeps the direction (1 - cosine) and sets the norm to max_norm (relative "
                "error)",
                f"{direction_error:.1e}; {norm_error:.1e}",
                "below 1e-6",
                max(direction_error, norm_error) < 1e-6,
            ),
            program.claim(
                6,
                "a training run: median loss of the last 50 updates at the best max_norm; without "
                "clipping",
                f"{best['loss']:.1e} at max_norm = {best['max_norm']}; "
                + targets.number(unclipped["loss"]),
                "lower with clipping",
                best["max_norm"] is not None
                and (unclipped["loss"] is None or best["loss"] < unclipped["loss"]),
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the surface with both paths, and the sweep."""
    figure, axes = style.panels(2, title="Clipping by norm", width=6.4, height=4.6)
    image = axes[0].pcolormesh(
        data["ws"], data["bs"], data["error"], cmap="cividis", shading="nearest"
    )
    figure.colorbar(image, ax=axes[0], label="error E")
    curves = (
        ("free", "without clipping", 1),
        ("held", f"clipped at {data['max_norm']} (same start)", 3),
    )
    for name, label, index in curves:
        path = np.array(data[name])
        axes[0].plot(
            path[:, 0],
            path[:, 1],
            marker=style.MARKERS[index],
            ms=2.5,
            label=label,
            **style.line(index),
        )
    axes[0].plot(
        *data["free"][0], "*", ms=15, color="white", mec="black", label="common start", zorder=5
    )
    axes[0].set(xlim=(4, 7), ylim=(-3, -2), xlabel="w", ylabel="b")
    axes[0].set_title(
        "The cliff: x' = w σ(x) + b, 50 steps. Of the plain descents with\n"
        "a step longer than 1, the one with the most steps before it",
        fontsize=10,
    )
    axes[0].legend(fontsize=9, loc="upper left")
    rows, limit = data["sweep"], 1e3
    places = np.arange(len(rows))
    for index, (name, label) in enumerate(
        (("loss", "median loss, last 50 updates"), ("worst", "largest loss, last 50 updates"))
    ):
        heights = [limit if r[name] is None else min(r[name], limit) for r in rows]
        axes[1].plot(places, heights, marker=style.MARKERS[index], label=label, **style.line(index))
    labels = [
        "none" if r["max_norm"] is None else f"{r['max_norm']}\n{r['clipped']:.0%}" for r in rows
    ]
    axes[1].set_xticks(places, labels, fontsize=9)
    axes[1].set(
        xlabel="G$_{max}$, and the fraction of updates clipped",
        ylabel="mean squared error",
        yscale="log",
    )
    axes[1].set_title(
        "Recall of a sign, tanh network of gain 1.5\n(NaN and losses above 1000 are drawn at 1000)"
    )
    axes[1].legend(fontsize=9)
    style.save(figure, folder, "clipping_cliff")


if __name__ == "__main__":
    program.run(__file__)
