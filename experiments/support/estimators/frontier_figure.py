"""Print the tables and draw the figure of `experiments.estimator_frontier`."""

from pathlib import Path
from typing import Any

from experiments.support.common import console, style
from experiments.support.common.console import human_bytes
from tbptt.diagnostics import EstimatorRow

LEAST_BIAS = 1e-8  # smaller biases are drawn at this value


def show(task: str, rows: list[EstimatorRow], best: set[str]) -> None:
    """Print the table of one task."""
    cells = [
        [
            ("* " if row.estimator in best else "  ") + row.estimator,
            f"{row.bias:.2e}" + (f" ± {row.bias_error:.0e}" if row.bias_error else ""),
            f"{row.cosine:.4f}",
            f"{row.sign_agreement:.3f}",
            f"{row.variance:.1e}",
            f"{row.seconds_per_step * 1e6:.1f}",
            human_bytes(row.bytes),
        ]
        for row in rows
    ]
    header = (
        "estimator (* frontier)",
        "bias",
        "cosine",
        "signs",
        "variance",
        "µs per step",
        "memory",
    )
    console.table(f"{task}: gradients against full BPTT in float64", header, cells)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw bias against cost for every task, with a line through the Pareto frontier."""
    rows = data["results"]["rows"]
    tasks, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "estimator"))
    title = "Bias against cost (line: Pareto frontier; grey: float32 rounding)"
    figure, axes = style.panels(len(tasks), title=title, width=5.4, height=4.8)
    for axis, task in zip(axes, tasks, strict=True):
        found = [row for row in rows if row["task"] == task]
        for row in found:
            _point(axis, row, names.index(row["estimator"]))
        best = sorted(
            (row for row in found if row["frontier"]), key=lambda row: row["seconds_per_step"]
        )
        axis.plot(
            [_cost(r) for r in best],
            [max(r["bias"], LEAST_BIAS) for r in best],
            color="black",
            lw=0.8,
            zorder=0,
        )
        axis.axhspan(LEAST_BIAS / 2, data["rounding"], color=style.GREY, alpha=0.15, lw=0)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="µs per step (one gradient / T)",
            title=task,
            ylim=(LEAST_BIAS / 2, 20),
        )
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axes[0].set_ylabel("relative bias ||g - r|| / ||r||")
    axes[-1].legend(
        fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        title="bars: standard error",
        title_fontsize=7,
    )
    style.save(figure, folder, "estimator_frontier")


def _point(axis: Any, row: dict[str, Any], index: int) -> None:
    """Draw one estimator, with an arrow if the bias is within one standard error of 0."""
    bias, standard_error = max(row["bias"], LEAST_BIAS), row["bias_error"]
    look: dict[str, Any] = {
        "color": style.COLORS[index % 7],
        "marker": style.MARKERS[(index + index // 7) % 7],
        "ls": "none",
    }
    hollow = "none" if index >= 7 else None
    bar = [[min(standard_error, 0.7 * bias)], [standard_error]] if standard_error else None
    axis.errorbar(
        _cost(row),
        bias,
        yerr=bar,
        uplims=standard_error >= bias and [True],
        label=row["estimator"],
        ms=7,
        mfc=hollow,
        elinewidth=1,
        **look,
    )


def _cost(row: dict[str, Any]) -> float:
    return row["seconds_per_step"] * 1e6
