"""Draw the figures of a run's report, as PNG bytes: loss, gradients and predictions."""

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from experiments.support.common import style
from tbptt.fit.metrics_file import Row

# Longer curves are drawn as means over intervals, with a band from the smallest to the largest
# value.
POINTS = 600


def losses(train: list[Row], valid: list[Row], metric: str) -> bytes:
    """Draw the training loss, and below it the validation metric, against updates."""
    rows = 2 if valid and metric else 1
    figure, axes = plt.subplots(
        rows, 1, figsize=(9, 3.2 * rows), layout="constrained", squeeze=False, sharex=True
    )
    axis = axes[0, 0]
    _curve(axis, train, "loss", 0, "mean over the updates of a log line")
    positive = [row["loss"] for row in train if row["loss"] is not None and row["loss"] > 0]
    if len(positive) == len(train) and max(positive) > 30 * min(positive):
        _log_scale(axis)
    axis.set_ylabel("training loss")
    _mark_breaks(axis, train)
    if rows == 2:
        below = axes[1, 0]
        steps = [row["step"] for row in valid if row.get(metric) is not None]
        values = [row[metric] for row in valid if row.get(metric) is not None]
        below.plot(steps, values, marker="s" if len(steps) < 60 else None, ms=4, **style.line(1))
        below.set_ylabel(f"validation {display_name(metric)}")
    axes[-1, 0].set_xlabel("updates")
    return _png(figure, axes)


def gradients(train: list[Row], clip: float | None) -> bytes:
    """Draw mean and largest gradient norm before clipping, and the fraction clipped."""
    shares = any(row["clipped"] is not None for row in train)
    figure, axes = plt.subplots(
        1 + shares, 1, figsize=(9, 3.4 + 1.9 * shares),
        layout="constrained", squeeze=False, sharex=True,
        height_ratios=[1.8, 1][: 1 + shares],
    )  # fmt: skip
    axis = axes[0, 0]
    _curve(axis, train, "grad_norm", 0, "mean over the updates of a log line")
    _curve(axis, train, "grad_norm_max", 1, "largest", join=np.maximum.reduceat)
    if clip:
        axis.axhline(clip, color=style.GREY, lw=1.2, ls=":", label=f"clipped at {clip:g}")
    norms = [row[name] for row in train for name in ("grad_norm", "grad_norm_max") if row[name]]
    if norms and min(norms) > 0:
        _log_scale(axis)
    axis.set_ylabel("gradient norm before clipping")
    axis.legend(fontsize=9)
    if shares:
        _curve(
            axes[1, 0],
            [{**row, "clipped": _percent(row["clipped"])} for row in train],
            "clipped",
            0,
            "",
        )
        axes[1, 0].set(ylabel="clipped (%)", ylim=(-3, 103))
    bad = [row["step"] for row in train if row["non_finite"]]
    if bad:
        axis.plot(
            bad,
            [0.04] * len(bad),
            "x",
            color=style.COLORS[1],
            transform=axis.get_xaxis_transform(),
            label="not finite",
        )
        axis.legend(fontsize=9)
    axes[-1, 0].set_xlabel("updates")
    return _png(figure, axes)


def forecasts(
    rows: np.ndarray, truth: np.ndarray, prediction: np.ndarray, target: str, horizon: int
) -> bytes:
    """Draw forecasts and the truth, each forecast at the row that it predicts."""
    figure, axes = plt.subplots(1, 1, figsize=(9, 3.6), layout="constrained", squeeze=False)
    axis, at = axes[0, 0], rows + horizon
    axis.plot(at, truth, color=style.GREY, lw=1.4, label="truth")
    axis.plot(
        at,
        prediction,
        **style.line(0),
        label="prediction" + (f", made {horizon} rows before" if horizon else ""),
    )
    axis.set(xlabel="row of the data", ylabel=target)
    axis.legend(fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)
    return _png(figure, axes)


def confusion(truth: np.ndarray, prediction: np.ndarray) -> bytes:
    """Draw the confusion matrix in percent of the true class, with counts beside the names."""
    names = sorted(set(truth.tolist()) | set(prediction.tolist()), key=_as_number)
    counts = np.array([[np.sum((truth == a) & (prediction == b)) for b in names] for a in names])
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(9.0, 2.6 + 0.55 * len(names))
    figure, axes = plt.subplots(1, 1, figsize=(size + 1, size), layout="constrained", squeeze=False)
    axis = axes[0, 0]
    image = axis.imshow(share, cmap="cividis", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share) if len(names) <= 12 else ():
        axis.text(
            j,
            i,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=9,
            color="black" if value > 55 else "white",
        )
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(
        range(len(names)),
        [f"{name} ({n})" for name, n in zip(names, counts.sum(axis=1), strict=True)],
    )
    axis.set(xlabel="predicted class", ylabel="true class (count)")
    figure.colorbar(image, ax=axis, label="% of the true class")
    return _png(figure, axes, grid=False)


def _curve(axis: Any, rows: list[Row], name: str, index: int, label: str, join: Any = None) -> None:
    """Draw a field of the rows.

    Long curves as means over intervals with a band, or reduced by `join`.
    """
    points = [(row["step"], row[name]) for row in rows if row[name] is not None]
    if not points:
        return
    steps, values = np.array(points, np.float64).T
    if len(values) > POINTS:
        edges = np.linspace(0, len(values), POINTS + 1).astype(int)[:-1]
        counts = np.diff([*edges, len(values)])
        low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
        means = np.add.reduceat(values, edges) / counts
        steps, values = (
            np.add.reduceat(steps, edges) / counts,
            means if join is None else join(values, edges),
        )
        if join is None:
            axis.fill_between(
                steps,
                low,
                high,
                color=style.COLORS[index],
                alpha=0.25,
                lw=0,
                label="smallest to largest",
            )
    axis.plot(
        steps,
        values,
        **style.line(index),
        label=label,
        marker="o" if len(values) < 12 else None,
        ms=4,
    )


class _Plain(ticker.LogFormatter):
    """Formatter of a logarithmic axis that writes plain numbers at matplotlib's ticks."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _log_scale(axis: Any) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_Plain())
    axis.yaxis.set_minor_formatter(_Plain(minor_thresholds=(2, 0.5)))


def _mark_breaks(axis: Any, train: list[Row]) -> None:
    """Mark the updates without a finite loss, which are missing from the curve."""
    bad = [row["step"] for row in train if row["loss"] is None]
    if bad:
        axis.plot(
            bad,
            [0.04] * len(bad),
            "x",
            color=style.COLORS[1],
            transform=axis.get_xaxis_transform(),
            label="not finite",
        )
        axis.legend(fontsize=9)


def display_name(metric: str) -> str:
    """Return the name of a metric for display."""
    return {"": "metric", "mae": "MAE", "rmse": "RMSE"}.get(metric, metric.replace("_", " "))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _as_number(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _png(figure: Any, axes: Any, *, grid: bool = True) -> bytes:
    for axis in axes.flat if grid else ():
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
