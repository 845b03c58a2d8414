"""Draw the figure of pulse_65k from its data."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import style, targets


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw cost by plan, error by window, and loss by seconds, as pulse_65k.png."""
    results = data["results"]
    figure, axes = style.panels(
        3,
        title=f"Pulse recording, {results['T']:,} steps in one unbroken sequence, LSTM",
        width=5.2,
    )
    _plans(axes[0], results)
    _errors(axes[1], results)
    _curves(axes[2], data["curves"])
    style.save(figure, folder, "pulse_65k")


def _plans(axis: Any, results: dict[str, Any]) -> None:
    for index, row in enumerate(results["plans"]):
        axis.plot(
            row["seconds"],
            row["bytes"] / 2**20,
            style.MARKERS[index],
            ms=9,
            color=style.COLORS[index],
            label=f"full: {row['name']}",
        )
    short = [row for row in results["rows"] if not row["full"]]
    axis.plot(
        [row["seconds_per_update"] for row in short],
        [row["temp_bytes"] / 2**20 for row in short],
        "x",
        color=style.GREY,
        ms=8,
        label="TBPTT, one update",
    )
    for row in short:
        # Its marker is next to that of (k2, k2), which costs about the same.
        below = row["k2"] > row["k1"]
        axis.annotate(
            f"({row['k1']}, {row['k2']})",
            (row["seconds_per_update"], row["temp_bytes"] / 2**20),
            xytext=(7, -12 if below else 4),
            textcoords="offset points",
            fontsize=8,
        )
    axis.set(xscale="log", yscale="log", xlabel="CPU seconds", ylabel="temporary memory (MiB)")
    axis.set_title("Cost of one full gradient by plan, and of one TBPTT update")
    axis.margins(0.2)
    axis.legend(fontsize=8, loc="upper left")


def _errors(axis: Any, results: dict[str, Any]) -> None:
    rows = sorted(results["rows"], key=lambda row: (row["k2"], row["k1"]))
    for x, row in enumerate(rows):
        targets.dots(axis, x, row["test_mse"], 1 if row["full"] else 0)
        text = f"{int(np.median(row['updates'])):,}\nupdates"
        axis.annotate(
            text,
            (x, max(row["test_mse"])),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=7.5,
            ha="center",
        )
    linear = {name: mse for name, mse in results["baselines"].items() if name != "last value"}
    for index, (name, mse) in enumerate(linear.items()):
        axis.axhline(mse, color=style.GREY, lw=1.2, ls=style.LINES[2 + index % 2], label=name)
    axis.set_xticks(
        range(len(rows)),
        ["full" if row["full"] else f"{row['k1']},\n{row['k2']}" for row in rows],
        fontsize=9,
    )
    shown = [*linear.values(), *(mse for row in rows for mse in row["test_mse"])]
    axis.set(xlabel="k1, k2 (steps)", ylabel="test MSE (standardised, logarithmic)", yscale="log")
    axis.set_ylim(0.7 * min(shown), 5 * max(shown))
    axis.set_title("Error at equal seconds (bar: median over seeds)")
    axis.legend(fontsize=8, loc="upper right")


def _curves(axis: Any, curves: dict[str, Any]) -> None:
    for index, (name, curve) in enumerate(curves.items()):
        used, loss = np.asarray(curve).T
        axis.plot(used, loss, label=name, **style.line(index))
    axis.set(
        xlabel="training time (CPU seconds)",
        ylabel="training loss (MSE, mean of four horizons)",
        yscale="log",
    )
    axis.set_title("Training loss of the first seed")
    axis.legend(fontsize=8)
