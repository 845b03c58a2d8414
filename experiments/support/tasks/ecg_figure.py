"""Draw the figure of ecg from its data."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common import style, targets


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the test error by window, by horizon and by channel, as ecg.png."""
    results = data["results"]
    title = f"ECG and electrograms, {results['rate']:.0f} Hz: "
    title += f"{results['chosen']} is {results['verdict']}"
    figure, axes = style.panels(
        3, title=f"{title} than ridge AR({results['chosen_ridge']})", width=5.2
    )
    _reach(axes[0], results)
    chosen = {
        name: next(r for r in results["rows"] if r["name"] == name) for name in _chosen(results)
    }
    ridge = next(
        row for row in results["baselines"]["ridge"] if row["order"] == results["chosen_ridge"]
    )
    forecasts = chosen | {f"ridge AR({ridge['order']})": ridge}
    _horizon(axes[1], results, forecasts)
    _channel(axes[2], results, forecasts)
    style.save(figure, folder, "ecg")


def _chosen(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys((results["chosen_alone"], results["chosen"])))


def _reach(axis: Any, results: dict[str, Any]) -> None:
    rows, ridge = results["rows"], results["baselines"]["ridge"]
    for index, form in enumerate(dict.fromkeys(row["form"] for row in rows)):
        mine = [row for row in rows if row["form"] == form]
        for row in mine:
            color = style.COLORS[index]
            axis.plot(
                [row["k"]] * len(row["test_mse"]), row["test_mse"], "o", mfc="none", color=color
            )
        medians = [targets.median(row["test_mse"]) for row in mine]
        axis.plot([row["k"] for row in mine], medians, label=f"{form}, median", **style.line(index))
    order = [r["order"] for r in ridge]
    axis.plot(
        order, [r["test_mse"] for r in ridge], marker="s", label="ridge AR(k)", **style.line(2)
    )
    axis.set(
        xscale="log", xlabel="k (steps; the longest is full BPTT)", ylabel="test MSE (standardised)"
    )
    axis.set_ylim(0, 1.05 * max(max(row["test_mse"]) for row in rows))
    axis.set_title("Mean over channels and horizons; circles: seeds")
    axis.legend(fontsize=8, loc="lower left")


def _horizon(axis: Any, results: dict[str, Any], forecasts: dict[str, Any]) -> None:
    ms = 1e3 * np.asarray(results["horizons"]) / results["rate"]
    curves = {**forecasts, **results["baselines"]["plain"]}
    for index, (name, row) in enumerate(curves.items()):
        axis.plot(
            ms, row["by_horizon"], marker=style.MARKERS[index], label=name, **style.line(index)
        )
    axis.set(xlabel="forecast horizon (ms)", ylabel="test MSE (standardised)", ylim=(0, None))
    axis.set_title("By horizon, mean over channels")
    axis.legend(fontsize=8)


def _channel(axis: Any, results: dict[str, Any], forecasts: dict[str, Any]) -> None:
    places = np.arange(len(results["names"]))
    width = 0.84 / len(forecasts)
    for index, (name, row) in enumerate(forecasts.items()):
        axis.bar(
            places + width * (index - (len(forecasts) - 1) / 2),
            row["by_channel"],
            0.95 * width,
            color=style.COLORS[index],
            hatch=(None, "//", "..")[index],
            edgecolor="white",
            label=name,
        )
    axis.set_xticks(places, results["names"], fontsize=8)
    axis.set(ylabel="test MSE (standardised)")
    axis.set_title("By channel, mean over horizons")
    axis.legend(fontsize=8)
