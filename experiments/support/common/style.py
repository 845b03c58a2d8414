"""Style of figures: the colours of Okabe and Ito, safe for colour-blind readers."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"


def line(index: int) -> dict[str, Any]:
    """Return colour, dash and width of the index-th curve."""
    return {"color": COLORS[index % len(COLORS)], "ls": LINES[index % len(LINES)], "lw": 1.8}


def panels(
    columns: int, *, rows: int = 1, title: str = "", width: float = 5.0, height: float = 4.2
) -> tuple[Any, list[Any]]:
    """Create panels with light grids, row by row."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, list(axes.flat)


def median_and_range(axis: Any, updates: Any, losses: Any, index: int, label: str) -> None:
    """Draw the median of losses `[seeds, n]` over training, and their range as a band."""
    losses = np.asarray(losses, float)
    axis.plot(updates, np.median(losses, axis=0), label=label, **line(index))
    low, high = losses.min(0), losses.max(0)
    axis.fill_between(updates, low, high, color=COLORS[index], alpha=0.15, lw=0)


def few_ticks(*log_axes: Any) -> None:
    """Label 1, 2 and 5 times the powers of ten on logarithmic axes, as plain numbers."""
    for axis in log_axes:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def save(figure: Any, folder: Path, name: str) -> None:
    """Save `name`.png and close the figure."""
    figure.savefig(folder / f"{name}.png", dpi=110)
    plt.close(figure)
