"""Draw the figure of window_tradeoff from the files of a run.

python -m experiments.support.lecture.tradeoff_figure DIR
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402

# The colours of Okabe and Ito, which are safe for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"


def draw(folder: Path) -> None:
    """Draw error, memory and gradient by window, as window_tradeoff.png."""
    summary = json.loads((folder / "summary.json").read_text())
    lag = json.loads((folder / "lag.json").read_text())
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    _error(axes[0], summary)
    _memory(axes[1], summary)
    _lag(axes[2], summary, lag)
    device = summary["environment"]
    quick = "QUICK RUN, too short to conclude from; " if summary["quick"] else ""
    figure.suptitle(
        f"{quick}{summary['dataset']}, {summary['horizon']} steps ahead, LSTM; "
        f"{device['cpus']} CPU cores, jax {device['jax']}, {device['date'][:10]}", fontsize=11
    )  # fmt: skip
    figure.savefig(folder / "window_tradeoff.png", dpi=110)
    plt.close(figure)


def _groups(
    rows: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    full = [r for r in rows if r["estimator"] == "full_bptt"]
    equal = sorted((r for r in rows if r not in full and r["k1"] == r["k2"]), key=lambda r: r["k2"])
    return full, equal, [r for r in rows if r not in full and r["k1"] != r["k2"]]


def _points(axis: Any, rows: list[dict[str, Any]], field: str, scale: float = 1.0) -> None:
    full, equal, unequal = _groups(rows)
    line = [*equal, *full]
    axis.plot(
        [r["k2"] for r in line], [r[field] / scale for r in line], color=BLUE, lw=1.5, zorder=1
    )
    axis.plot(
        [r["k2"] for r in equal],
        [r[field] / scale for r in equal],
        "o",
        color=BLUE,
        ms=8,
        label="TBPTT, k1 = k2",
    )
    axis.plot(
        [r["k2"] for r in full],
        [r[field] / scale for r in full],
        "s",
        color=ORANGE,
        ms=9,
        label="full BPTT",
    )
    if unequal:
        xs, ys = [r["k2"] for r in unequal], [r[field] / scale for r in unequal]
        axis.plot(xs, ys, "^", color=GREEN, ms=9, label="TBPTT, k2 > k1")
        for r, x, y in zip(unequal, xs, ys, strict=True):
            axis.annotate(
                f"({r['k1']}, {r['k2']})",
                (x, y),
                xytext=(4, -16),
                textcoords="offset points",
                fontsize=9,
            )
    axis.set(xscale="log", xlabel="window k2 (steps the gradient flows back)")
    axis.grid(alpha=0.3)


def _error(axis: Any, summary: dict[str, Any]) -> None:
    rows = summary["rows"]
    _points(axis, rows, "test_mse")
    for (name, value), style in zip(
        summary["baselines"].items(), (":", ":", "-.", "--"), strict=True
    ):
        if name in ("ar64", "ar256"):
            axis.axhline(value, color=GREY, ls=style, lw=1.2)
            axis.text(
                max(r["k2"] for r in rows),
                value,
                f"ridge {name.upper()} ",
                ha="right",
                va="bottom",
                fontsize=9,
                color=GREY,
            )
    axis.set(ylabel="test error (MSE, standardised)", ylim=(0, None))
    axis.set_title(
        f"Error after {np.median([r['train_seconds'] for r in rows]):.0f} s of training each"
    )
    axis.legend(fontsize=9, loc="upper center")


def _memory(axis: Any, summary: dict[str, Any]) -> None:
    _points(axis, summary["rows"], "temp_bytes", 2**20)
    axis.set(
        ylabel="temporary memory of one step (MiB)", yscale="log", title="Memory of one update"
    )
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _lag(axis: Any, summary: dict[str, Any], lag: dict[str, list[float]]) -> None:
    for (name, norms), color, style in zip(lag.items(), (BLUE, ORANGE), ("-", "--"), strict=True):
        axis.plot(
            np.arange(1, len(norms) + 1), norms, style, color=color, lw=1.8, label=f"{name} LSTM"
        )
    pick = summary["chosen"]["k2"]
    if pick <= len(lag["trained"]):
        axis.axvline(pick, color=GREY, lw=1.2, ls=":")
        axis.text(
            pick,
            0.02,
            f" chosen k2 = {pick}",
            transform=axis.get_xaxis_transform(),
            fontsize=9,
            color=GREY,
        )
    axis.set(
        xlabel="lag k (steps back)",
        ylabel="‖∂y$_s$ / ∂carry$_{s-k}$‖, median over the batch",
        yscale="log",
    )
    low = min(v for norms in lag.values() for v in norms if v > 0)
    axis.set_ylim(bottom=max(low, 1e-10))
    axis.set_title("Gradient by lag")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
