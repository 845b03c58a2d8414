"""The figure of ecg; reads its data and never trains."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support import known, style


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws test error by reach, by horizon and by channel; ecg.png."""
    results = data["results"]
    title = f"ECG and electrograms, {results['rate']:.0f} Hz: LSTM, {results['chosen']}, is {results['verdict']}"
    figure, axes = style.panels(3, title=f"{title} than ridge AR({results['chosen_ridge']})", width=5.2)
    _reach(axes[0], results)
    best = next(row for row in results["rows"] if row["name"] == results["chosen"])
    ridge = next(row for row in results["baselines"]["ridge"] if row["reach"] == results["chosen_ridge"])
    pair = {f"LSTM, {best['name']}": best, f"ridge AR({ridge['reach']})": ridge}
    _horizon(axes[1], results, pair)
    _channel(axes[2], results, pair)
    style.save(figure, folder, "ecg")


def _reach(axis: Any, results: dict[str, Any]) -> None:
    rows, ridge = results["rows"], results["baselines"]["ridge"]
    for index, row in enumerate(rows):
        axis.plot(
            [row["k"]] * len(row["test_mse"]),
            row["test_mse"],
            "o",
            mfc="none",
            color=style.COLORS[0],
            label="a seed" if index == 0 else None,
        )
    medians = [known.median(row["test_mse"]) for row in rows]
    axis.plot([row["k"] for row in rows], medians, label="LSTM, TBPTT(k, k), median", **style.line(0))
    axis.plot([r["reach"] for r in ridge], [r["test_mse"] for r in ridge], marker="s", label="ridge AR(k)", **style.line(1))
    axis.set(xscale="log", xlabel="k (steps; the longest is full BPTT over a lane)", ylabel="test MSE (standardised)")
    axis.set_ylim(0, None)
    axis.set_title("Mean over channels and horizons")
    axis.legend(fontsize=8, loc="lower left")


def _horizon(axis: Any, results: dict[str, Any], pair: dict[str, Any]) -> None:
    ms = 1e3 * np.asarray(results["horizons"]) / results["rate"]
    curves = {**pair, **results["baselines"]["plain"]}
    for index, (name, row) in enumerate(curves.items()):
        axis.plot(ms, row["by_horizon"], marker=style.MARKERS[index], label=name, **style.line(index))
    axis.set(xlabel="forecast ahead (ms)", ylabel="test MSE (standardised)", ylim=(0, None))
    axis.set_title("By horizon, mean over channels")
    axis.legend(fontsize=8)


def _channel(axis: Any, results: dict[str, Any], pair: dict[str, Any]) -> None:
    places = np.arange(len(results["names"]))
    for index, (name, row) in enumerate(pair.items()):
        axis.bar(
            places + 0.4 * (index - 0.5),
            row["by_channel"],
            0.38,
            color=style.COLORS[index],
            hatch=(None, "//")[index],
            edgecolor="white",
            label=name,
        )
    axis.set_xticks(places, results["names"], fontsize=8)
    axis.set(ylabel="test MSE (standardised)")
    axis.set_title("By channel, mean over horizons")
    axis.legend(fontsize=8)
