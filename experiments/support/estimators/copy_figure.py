"""The picture of `experiments.adaptive_copy`: perplexity over training, and the window that was chosen."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import style


def look_of(index: int) -> dict[str, Any]:
    """Colour and dash; a second round of the colours is dashed otherwise."""
    return style.line(index) | {"ls": style.LINES[(index + 3 * (index // 7)) % 7], "lw": 1.5}


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws perplexity over training, and the window that was chosen."""
    lag, steps, look = (data["task"][name] for name in ("lag", "pass", "look"))
    nothing = data["curves"][0]["nothing"]
    figure, axes = style.panels(3, title=f"Copy with lag {lag}: fixed windows and chosen ones", width=5.2)
    for index, curve in enumerate(data["curves"]):
        x = look * np.arange(1, len(curve["perplexity"]) + 1)
        axes[0].plot(x, curve["perplexity"], label=curve["name"], **look_of(index))
        if curve["windows"]:
            x = np.arange(1, len(curve["windows"]) + 1)
            axes[1].plot(x, curve["windows"], label=curve["name"], **look_of(index))
    axes[0].axhline(nothing, color=style.GREY, lw=0.8, ls=":", label=f"remembers nothing: {nothing:.2f} (on this stream)")
    axes[0].set(xlabel=f"passes of {steps} steps", ylabel="test perplexity (1 is perfect)", ylim=(0.98, 2.6))
    axes[0].legend(fontsize=7, ncols=2, loc="upper right")
    axes[1].axhline(lag, color=style.GREY, lw=0.8, ls=":")
    axes[1].set(xlabel=f"passes of {steps} steps", ylabel="k2 chosen (mean over the pass, steps)", ylim=(0, None))
    axes[1].set_title("dotted: the lag of the task", fontsize=9)
    axes[1].legend(fontsize=8)
    _asked(axes[2], data, lag, steps)
    style.save(figure, folder, "adaptive_copy")


def _asked(axis: Any, data: dict[str, Any], lag: int, steps: int) -> None:
    curves = [curve for curve in data["curves"] if curve["asked"]]
    for index, curve in enumerate(curves):
        places = np.arange(len(curve["asked"]))
        axis.plot(
            places, [k2 for _, k2 in curve["asked"]], label=curve["name"], marker=style.MARKERS[index], **style.line(index)
        )
    axis.axhline(lag, color=style.GREY, lw=0.8, ls=":")
    passes = [str(look) for look, _ in curves[0]["asked"]]
    axis.set_xticks(np.arange(len(passes)), passes)
    axis.set(xlabel=f"passes of {steps} steps (0: untrained)", ylabel="k2 asked for (steps)", ylim=(0, None))
    axis.set_title(f"measured with {data['task']['losses']} losses, of each run's network", fontsize=9)
    axis.legend(fontsize=8)
