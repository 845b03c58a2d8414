"""Table and picture of `experiments.estimator_frontier`: bias against cost."""

from pathlib import Path
from typing import Any

from experiments.support import console, style
from experiments.support.console import human_bytes
from tbptt.diagnostics import EstimatorRow


def show(task: str, rows: list[EstimatorRow], best: set[str]) -> None:
    """Prints one task's table."""
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
    header = ("estimator (* frontier)", "bias", "cosine", "signs", "variance", "µs a step", "memory")
    console.table(f"{task}: gradients against full BPTT in float64", header, cells)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws bias against cost for every task, the frontier as a line."""
    tasks = list(dict.fromkeys(row["task"] for row in data["results"]["rows"]))
    figure, axes = style.panels(
        len(tasks), title="Bias against cost; the line joins what nobody beats", width=5.6, height=5.0
    )
    for axis, task in zip(axes, tasks, strict=True):
        rows = [row for row in data["results"]["rows"] if row["task"] == task]
        floor = 1e-8
        for index, row in enumerate(rows):
            x, y = row["seconds_per_step"] * 1e6, max(row["bias"], floor)
            style_of = {"color": style.COLORS[index % 7], "marker": style.MARKERS[index % 7], "ls": "none"}
            axis.errorbar(
                x,
                y,
                yerr=row["bias_error"] or None,
                label=row["estimator"],
                ms=7,
                mfc="none" if index >= 7 else None,
                **style_of,
            )
        best = sorted((row for row in rows if row["frontier"]), key=lambda row: row["seconds_per_step"])
        axis.plot([r["seconds_per_step"] * 1e6 for r in best], [max(r["bias"], floor) for r in best], color="black", lw=0.8)
        axis.set(xscale="log", yscale="log", xlabel="µs a step (one gradient / T)", title=task)
    axes[0].set_ylabel("relative bias ||g - r|| / ||r|| (bars: chance)")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    style.save(figure, folder, "estimator_frontier")
