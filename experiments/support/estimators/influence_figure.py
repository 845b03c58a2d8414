"""Draw the figure of `experiments.influence_balancing`."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import style
from experiments.support.estimators import influence


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the derivative over the grid, and theta over the stream."""
    figure, axes = style.panels(
        2, title="Influence balancing: sign of the truncated gradient", width=6.4, height=5.2
    )
    k1s, k2s = (sorted({row[name] for row in data["grid"]}) for name in ("k1", "k2"))
    table = np.full((len(k1s), len(k2s)), np.nan)
    for row in data["grid"]:
        table[k1s.index(row["k1"]), k2s.index(row["k2"])] = row["measured"]
    axes[0].grid(False)
    image = axes[0].imshow(
        table, cmap="PuOr_r", vmin=-16.5, vmax=16.5, aspect="auto", origin="lower"
    )
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = abs(value) > 10
            axes[0].text(
                j,
                i,
                f"{value:.0f}" if abs(value) >= 1 else f"{value:.1g}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
    axes[0].set_xticks(range(len(k2s)), [str(k) for k in k2s], fontsize=7, rotation=90)
    axes[0].set_yticks(range(len(k1s)), [str(k) for k in k1s], fontsize=7)
    axes[0].set(
        xlabel="k2: steps the gradient flows back (blank: not measured)",
        ylabel="k1: steps between windows",
    )
    axes[0].set_title("mean ds₀/dθ by TBPTT(k1, k2) (true: -6; above 0: wrong sign)", fontsize=10)
    figure.colorbar(image, ax=axes[0], label="ds₀/dθ")
    for index, (name, thetas) in enumerate(data["thetas"].items()):
        shown = np.clip(np.nan_to_num(np.asarray(thetas, float), nan=np.inf), -0.5, 2)
        x = np.linspace(0, data["results"]["runs"][index]["steps"], len(shown))
        # Curves of the same colour have different dashes and markers.
        cycle = index // len(style.COLORS)
        look = style.line(index) | {
            "ls": style.LINES[(index + 3 * cycle) % 7],
            "marker": style.MARKERS[(index + cycle) % 7],
        }
        axes[1].plot(x, shown, label=name, markevery=12, ms=4, **look)
    axes[1].axhline(influence.STAR, color="black", lw=0.8)
    axes[1].set(xlabel="steps of the stream", ylabel="θ (clipped to -0.5 .. 2)", ylim=(-0.6, 2.1))
    axes[1].set_title("online training by SGD (line: θ* = -1/6)", fontsize=10)
    axes[1].legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    style.save(figure, folder, "influence_balancing")
