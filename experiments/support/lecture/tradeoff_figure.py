"""Draw the figure of window_tradeoff: error, test, memory and gradient by window."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import style

BLUE, ORANGE, GREEN = style.COLORS[:3]


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw window_tradeoff.png from the measured data."""
    setting = data["setting"]
    quick = "QUICK RUN, too short to conclude from: " if setting["quick"] else ""
    title = (
        f"{quick}{setting['dataset']} recording, {setting['horizon']} steps ahead, LSTM; "
        "errors are mean squares of the standardised signal"
    )
    figure, axes = style.panels(2, rows=2, title=title, width=5.0, height=3.9)
    _sweep(axes[0], data)
    _test(axes[1], data)
    _memory(axes[2], data["rows"])
    _lag(axes[3], data)
    style.save(figure, folder, "window_tradeoff")


def _groups(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """Return (label, colour, marker, rows) of full BPTT, k1 = k2, and k2 > k1."""
    equal = [row for row in rows[1:] if row["k1"] == row["k2"]]
    unequal = [row for row in rows[1:] if row["k1"] != row["k2"]]
    groups = [
        ("TBPTT, k1 = k2", BLUE, "o", sorted(equal, key=lambda row: row["k2"])),
        ("TBPTT, k2 > k1", GREEN, "^", unequal),
        ("full BPTT", ORANGE, "s", rows[:1]),
    ]
    return [group for group in groups if group[3]]


def _names(axis: Any, rows: list[dict[str, Any]], field: str, scale: float = 1.0) -> None:
    unequal = [row for row in rows if row["k1"] != row["k2"]]
    for index, row in enumerate(unequal):
        axis.annotate(
            f"({row['k1']}, {row['k2']})",
            (row["k2"], row[field] / scale),
            xytext=(0, 12 + 10 * index),
            ha="center",
            textcoords="offset points",
            fontsize=8,
        )


def _sweep(axis: Any, data: dict[str, Any]) -> None:
    rows = data["rows"]
    for label, color, marker, group in _groups(rows):
        middle = np.asarray([row["valid_mse"] for row in group])
        low, high = (
            np.asarray([f(row["valid_mse_seeds"]) for row in group]) for f in (np.min, np.max)
        )
        k2s = [row["k2"] for row in group]
        joined = "-" if len(group) > 1 and marker == "o" else ""
        axis.errorbar(
            k2s, middle, (middle - low, high - middle), color=color, marker=marker, ls=joined,
            capsize=4, ms=7, label=label,
        )  # fmt: skip
    axis.axhline(data["baselines"]["valid"]["ar256"], color=style.GREY, ls="--", lw=1.3)
    axis.text(
        rows[0]["k2"], data["baselines"]["valid"]["ar256"], "ridge AR(256)", ha="right",
        va="top", fontsize=8, color=style.GREY,
    )  # fmt: skip
    _names(axis, rows, "valid_mse")
    seeds, passes = len(rows[0]["valid_mse_seeds"]), rows[0]["passes"]
    axis.set(
        xscale="log", yscale="log", ylim=(0.1, 1.5), ylabel="validation error (MSE)",
        xlabel="window k2 (steps the gradient flows back)",
        title=f"Sweep: computation of {passes} passes each\n"
        f"({seeds} seeds: median, lowest to highest)",
    )  # fmt: skip
    style.few_ticks(axis.yaxis)
    axis.legend(fontsize=8, loc="upper left")


def _test(axis: Any, data: dict[str, Any]) -> None:
    chosen, base = data["chosen"], data["baselines"]["test"]
    bars = {
        "ridge\nAR(64)": (base["ar64"], style.GREY),
        "ridge\nAR(256)": (base["ar256"], style.GREY),
        f"{chosen['estimator']}\nmean forecast": (chosen["test_mse"], BLUE),
    }
    for index, (value, color) in enumerate(bars.values()):
        axis.bar(index, value, color=color, width=0.6)
        axis.text(index, value, f"{value:.3f}", ha="center", va="bottom", fontsize=9)
    seeds = chosen["test_mse_seeds"]
    axis.plot(np.full(len(seeds), 2.42), seeds, "D", color=ORANGE, ms=6, label="its single seeds")
    axis.set_xticks(range(len(bars)), list(bars), fontsize=8)
    axis.set(
        ylabel="test error (MSE)", xlim=(-0.5, 2.7), ylim=(0, 1.2 * base["ar64"]),
        title=f"Test: the chosen window after\n{chosen['passes']} passes, {len(seeds)} seeds",
    )  # fmt: skip
    axis.legend(fontsize=8)


def _memory(axis: Any, rows: list[dict[str, Any]]) -> None:
    for label, color, marker, group in _groups(rows):
        axis.plot(
            [row["k2"] for row in group],
            [row["temp_bytes"] / 2**20 for row in group],
            marker,
            color=color,
            ms=7,
            label=label,
        )
    _names(axis, rows, "temp_bytes", 2**20)
    axis.set(
        xscale="log", yscale="log", xlabel="window k2 (steps the gradient flows back)",
        ylabel="temporary memory (MiB)", title="Memory of one update\n(as the compiler plans it)",
    )  # fmt: skip
    style.few_ticks(axis.yaxis)
    axis.legend(fontsize=8, loc="upper left")


def _lag(axis: Any, data: dict[str, Any]) -> None:
    lag = data["lag"]
    for index, (name, norms) in enumerate(lag.items()):
        lags = np.arange(1, len(norms) + 1)
        axis.plot(lags, norms, label=f"{name} LSTM", **style.line(index))
    k2 = data["chosen"]["k2"]
    if k2 <= len(lag["trained"]):
        axis.axvline(k2, color=style.GREY, lw=1.2, ls=":")
        axis.text(
            k2, 0.02, f" chosen k2 = {k2}", transform=axis.get_xaxis_transform(), fontsize=8,
            color=style.GREY,
        )  # fmt: skip
    low = min(v for norms in lag.values() for v in norms if v > 0)
    axis.set(
        xlabel="lag k (steps back)", yscale="log", ylabel="‖∂y$_s$ / ∂carry$_{s-k}$‖",
        title="Gradient by lag\n(median over the batch)",
    )  # fmt: skip
    axis.set_ylim(bottom=max(low, 1e-10))
    axis.legend(fontsize=8)
