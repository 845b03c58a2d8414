"""Draw the figure of `experiments.adaptive_copy`."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import style


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dash of a curve; curves of the same colour have different dashes."""
    return style.line(index) | {"ls": style.LINES[(index + 3 * (index // 7)) % 7], "lw": 1.5}


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the perplexity over training, the chosen windows, and the required windows."""
    lag, steps, test_every = (data["task"][name] for name in ("lag", "pass", "test_every"))
    memoryless = data["curves"][0]["memoryless"]
    figure, axes = style.panels(
        3, title=f"Copy task with lag {lag}: fixed and chosen windows", width=5.2
    )
    for index, curve in enumerate(data["curves"]):
        x = test_every * np.arange(1, len(curve["perplexity"]) + 1)
        axes[0].plot(x, curve["perplexity"], label=curve["name"], **line_style(index))
        if curve["windows"]:
            x = np.arange(1, len(curve["windows"]) + 1)
            axes[1].plot(x, curve["windows"], label=curve["name"], **line_style(index))
    axes[0].axhline(
        memoryless,
        color=style.GREY,
        lw=0.8,
        ls=":",
        label=f"memoryless: {memoryless:.2f} (on this stream)",
    )
    axes[0].set(
        xlabel=f"passes of {steps} steps", ylabel="test perplexity (1 is perfect)", ylim=(0.98, 2.6)
    )
    axes[0].legend(fontsize=7, ncols=2, loc="upper right")
    axes[1].axhline(lag, color=style.GREY, lw=0.8, ls=":")
    axes[1].set(
        xlabel=f"passes of {steps} steps",
        ylabel="k2 chosen (mean over the pass, steps)",
        ylim=(0, None),
    )
    axes[1].set_title("Chosen windows (dotted: the lag of the task)", fontsize=9)
    axes[1].legend(fontsize=8)
    _required(axes[2], data, lag, steps)
    style.save(figure, folder, "adaptive_copy")


def _required(axis: Any, data: dict[str, Any], lag: int, steps: int) -> None:
    curves = [curve for curve in data["curves"] if curve["required"]]
    for index, curve in enumerate(curves):
        k2s = [k2 for _, k2 in curve["required"]]
        look = style.line(index) | {"marker": style.MARKERS[index]}
        axis.plot(np.arange(len(k2s)), k2s, label=curve["name"], **look)
    axis.axhline(lag, color=style.GREY, lw=0.8, ls=":")
    passes = [str(number) for number, _ in curves[0]["required"]]
    axis.set_xticks(np.arange(len(passes)), passes)
    axis.set(
        xlabel=f"passes of {steps} steps (0: untrained)",
        ylabel="k2 required (steps)",
        ylim=(0, None),
    )
    axis.set_title(f"Required windows, measured with {data['task']['losses']} losses", fontsize=9)
    axis.legend(fontsize=8)
