"""The picture of `experiments.adaptive_copy`: perplexity over training, and the window that was chosen."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support import style


def look_of(index: int) -> dict[str, Any]:
    """Colour and dash; a second round of the colours is dashed otherwise."""
    return style.line(index) | {"ls": style.LINES[(index + 3 * (index // 7)) % 7], "lw": 1.5}


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws perplexity over training, and the window that was chosen."""
    lag, steps, look, nothing = (data["task"][name] for name in ("lag", "pass", "look", "nothing"))
    figure, axes = style.panels(2, title=f"Copy with lag {lag}: fixed windows and chosen ones", width=5.6)
    for index, curve in enumerate(data["curves"]):
        x = look * np.arange(1, len(curve["perplexity"]) + 1)
        axes[0].plot(x, curve["perplexity"], label=curve["name"], **look_of(index))
        if curve["windows"]:
            x = np.arange(1, len(curve["windows"]) + 1)
            axes[1].plot(x, curve["windows"], label=curve["name"], **look_of(index))
    axes[0].axhline(nothing, color=style.GREY, lw=0.8, ls=":", label=f"remembers nothing: {nothing:.2f}")
    axes[0].set(xlabel=f"passes of {steps} steps", ylabel="test perplexity (1 is perfect)", ylim=(0.98, 2.5))
    axes[0].legend(fontsize=8, ncols=3, loc="upper right")
    axes[1].axhline(lag, color=style.GREY, lw=0.8, ls=":")
    axes[1].set(xlabel=f"passes of {steps} steps", ylabel="k2 chosen (mean over the pass, steps)", ylim=(0, None))
    axes[1].set_title("dotted: the lag of the task", fontsize=9)
    axes[1].legend(fontsize=8)
    style.save(figure, folder, "adaptive_copy")
