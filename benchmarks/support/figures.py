"""How figures look: Okabe and Ito's colours, told apart by all eyes; curves differ in dash and marker too."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curve(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the index-th curve."""
    n = index % len(COLORS)
    return {"color": COLORS[n], "ls": LINES[n], "marker": MARKERS[n], "lw": 1.8, "ms": 5}


def panels(columns: int, title: str) -> tuple[Any, list[Any]]:
    """Opens a row of panels with light grids."""
    figure, axes = plt.subplots(1, columns, figsize=(5.0 * columns, 4.2), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return figure, list(axes[0])


def by_system(axis: Any, rows: list[dict[str, Any]], x: str, y: str, *, scale: float = 1.0, index: int = 0) -> None:
    """Draws one curve a system over `case[x]`, for the rows that have `y`; the same system has the same look everywhere."""
    for n, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        points = sorted((r["case"][x], r[y] / scale) for r in rows if r["system"] == system and r.get(y) is not None)
        if points:
            axis.plot(*zip(*points, strict=True), label=system, **curve(n + index))


def title(summary: dict[str, Any], text: str) -> str:
    """A figure's headline: what, where, when, and whether it was quick."""
    machine = summary["environment"]
    quick = "QUICK RUN; " if summary["quick"] else ""
    where = f"{machine['cpu']}, {machine['cores']} cores" if machine["device"] == "cpu" else machine["device"]
    return f"{quick}{text}; {where}, jax {machine['versions']['jax']}, {machine['date'][:10]}"


def save(figure: Any, path: Path) -> None:
    """Writes the file and frees the figure."""
    figure.savefig(path, dpi=110)
    plt.close(figure)
