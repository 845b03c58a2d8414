"""Draw the figure of pixel_digits from its data."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import style, targets

TASKS = {
    "rows": "rows (28 steps)",
    "pixels": "pixels (784 steps)",
    "permuted": "permuted pixels (784)",
}
CHANCE = 0.1


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw accuracy by cell, and accuracy and loss of the LSTM by window, as pixel_digits.png."""
    rows = data["results"]["rows"]
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    count = f"{data['results']['train_digits']:,} training digits"
    figure, axes = style.panels(
        3, title=f"Digits as sequences, {count}, equal training seconds within a task", width=5.2
    )
    _cells(axes[0], rows, tasks)
    _windows(axes[1], rows, tasks)
    _curves(axes[2], rows, data["curves"], "pixels" if "pixels" in tasks else "rows")
    style.save(figure, folder, "pixel_digits")


def _chance(axis: Any) -> None:
    axis.axhline(CHANCE, color=style.GREY, lw=1.2, ls=":", label="chance")
    axis.set(ylabel="test accuracy", ylim=(-0.35, 1.08))
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.legend(fontsize=8, loc="lower left", ncols=2)


def _cells(axis: Any, rows: list[dict[str, Any]], tasks: list[str]) -> None:
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    for index, task in enumerate(tasks):
        for row in (r for r in rows if r["task"] == task and r["full"]):
            first = row["cell"] == cells[0]
            x = cells.index(row["cell"]) + 0.25 * (index - (len(tasks) - 1) / 2)
            targets.dots(axis, x, row["accuracy"], index, TASKS[task] if first else None)
    axis.set_xticks(
        range(len(cells)), [f"{name}\n(identity)" if name == "Elman" else name for name in cells]
    )
    axis.set_title("Full BPTT (bar: median over seeds)")
    _chance(axis)


def _windows(axis: Any, rows: list[dict[str, Any]], tasks: list[str]) -> None:
    for index, task in enumerate(tasks):
        mine = sorted(
            (r for r in rows if r["task"] == task and r["cell"] == "LSTM"), key=lambda r: r["k2"]
        )
        shares = [row["k2"] / row["T"] for row in mine]
        medians = [targets.median(row["accuracy"]) for row in mine]
        axis.plot(
            shares, medians, marker=style.MARKERS[index], label=TASKS[task], **style.line(index)
        )
        for x, y, row in zip(shares, medians, mine, strict=True):
            text = f"{int(np.median(row['updates'])):,}"
            axis.annotate(
                text, (x, y), xytext=(0, 7), textcoords="offset points", fontsize=7.5, ha="center"
            )
    axis.set(xscale="log", xlabel="window k2 / T (1: full BPTT)")
    axis.set_title("LSTM by window (numbers: updates)")
    _chance(axis)


def _curves(axis: Any, rows: list[dict[str, Any]], curves: dict[str, Any], task: str) -> None:
    mine = sorted(
        (r for r in rows if r["task"] == task and r["cell"] == "LSTM"), key=lambda r: r["k2"]
    )
    for index, row in enumerate(mine):
        used, loss = np.asarray(curves[row["label"]]).T
        width = max(1, len(loss) // 25)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        label = "full BPTT" if row["full"] else f"TBPTT({row['T']}, {row['k2']})"
        axis.plot(used[width - 1 :], smooth, label=label, **style.line(index))
    axis.axhline(np.log(10), color=style.GREY, lw=1.2, ls=":", label="chance, ln 10")
    axis.set(
        xlabel="training time (CPU seconds)",
        ylabel="training loss (nats, running mean)",
        ylim=(0, 3.4),
    )
    axis.set_title(f"LSTM on {TASKS[task]}, first seed")
    axis.legend(fontsize=8, loc="upper right", ncols=2)
