"""The figures of a run's report, as PNG: loss, gradients, predictions. They read the run's rows and never train."""

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from experiments.support.common import style
from experiments.support.train.metrics_file import Row

POINTS = 600  # more lines than these are drawn as means, with a band from the smallest to the largest


def losses(train: list[Row], valid: list[Row], metric: str) -> bytes:
    """Draws the loss of training, and under it the validation metric, against updates."""
    rows = 2 if valid and metric else 1
    figure, axes = plt.subplots(rows, 1, figsize=(9, 3.2 * rows), layout="constrained", squeeze=False, sharex=True)
    axis = axes[0, 0]
    _curve(axis, train, "loss", 0, "mean over a line's updates")
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
        below.set_ylabel(f"validation {spoken(metric)}")
    axes[-1, 0].set_xlabel("updates")
    return _png(figure, axes)


def gradients(train: list[Row], clip: float | None) -> bytes:
    """Draws the gradient's norm before clipping, mean and largest, and the share of updates that were clipped."""
    shares = any(row["clipped"] is not None for row in train)
    figure, axes = plt.subplots(
        1 + shares, 1, figsize=(9, 3.4 + 1.9 * shares), layout="constrained", squeeze=False, sharex=True,
        height_ratios=[1.8, 1][: 1 + shares],
    )  # fmt: skip
    axis = axes[0, 0]
    _curve(axis, train, "grad_norm", 0, "mean over a line's updates")
    _curve(axis, train, "grad_norm_max", 1, "largest", join=np.maximum.reduceat)
    if clip:
        axis.axhline(clip, color=style.GREY, lw=1.2, ls=":", label=f"clipped at {clip:g}")
    known = [row[name] for row in train for name in ("grad_norm", "grad_norm_max") if row[name]]
    if known and min(known) > 0:
        _log_scale(axis)
    axis.set_ylabel("gradient norm, before clipping")
    axis.legend(fontsize=9)
    if shares:
        _curve(axes[1, 0], [{**row, "clipped": _percent(row["clipped"])} for row in train], "clipped", 0, "")
        axes[1, 0].set(ylabel="clipped (%)", ylim=(-3, 103))
    bad = [row["step"] for row in train if row["non_finite"]]
    if bad:
        axis.plot(
            bad, [0.04] * len(bad), "x", color=style.COLORS[1], transform=axis.get_xaxis_transform(), label="not finite"
        )
        axis.legend(fontsize=9)
    axes[-1, 0].set_xlabel("updates")
    return _png(figure, axes)


def forecasts(rows: np.ndarray, truth: np.ndarray, prediction: np.ndarray, target: str, horizon: int) -> bytes:
    """Draws a stretch of forecasts over what came; each at the row that it is about."""
    figure, axes = plt.subplots(1, 1, figsize=(9, 3.6), layout="constrained", squeeze=False)
    axis, at = axes[0, 0], rows + horizon
    axis.plot(at, truth, color=style.GREY, lw=1.4, label="truth")
    axis.plot(at, prediction, **style.line(0), label="prediction" + (f", made {horizon} rows before" if horizon else ""))
    axis.set(xlabel="row of the data", ylabel=target)
    axis.legend(fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)
    return _png(figure, axes)


def confusion(truth: np.ndarray, prediction: np.ndarray) -> bytes:
    """Draws which class was taken for which, in percent of the true class, with counts beside the names."""
    names = sorted(set(truth.tolist()) | set(prediction.tolist()), key=_as_number)
    counts = np.array([[np.sum((truth == a) & (prediction == b)) for b in names] for a in names])
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(9.0, 2.6 + 0.55 * len(names))
    figure, axes = plt.subplots(1, 1, figsize=(size + 1, size), layout="constrained", squeeze=False)
    axis = axes[0, 0]
    image = axis.imshow(share, cmap="cividis", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share) if len(names) <= 12 else ():
        axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=9, color="black" if value > 55 else "white")
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), [f"{name} ({n})" for name, n in zip(names, counts.sum(axis=1), strict=True)])
    axis.set(xlabel="predicted class", ylabel="true class (how many)")
    figure.colorbar(image, ax=axis, label="% of the true class")
    return _png(figure, axes, grid=False)


def _curve(axis: Any, rows: list[Row], name: str, index: int, label: str, join: Any = None) -> None:
    """Draws a number of the lines; too many are joined to means with a band, or as `join` says."""
    known = [(row["step"], row[name]) for row in rows if row[name] is not None]
    if not known:
        return
    steps, values = np.array(known, np.float64).T
    if len(values) > POINTS:
        edges = np.linspace(0, len(values), POINTS + 1).astype(int)[:-1]
        counts = np.diff([*edges, len(values)])
        low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
        means = np.add.reduceat(values, edges) / counts
        steps, values = np.add.reduceat(steps, edges) / counts, means if join is None else join(values, edges)
        if join is None:
            axis.fill_between(steps, low, high, color=style.COLORS[index], alpha=0.25, lw=0, label="from least to most")
    axis.plot(steps, values, **style.line(index), label=label, marker="o" if len(values) < 12 else None, ms=4)


class _Plain(ticker.LogFormatter):
    """Ticks of a logarithmic axis where matplotlib would have them, as plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _log_scale(axis: Any) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_Plain())
    axis.yaxis.set_minor_formatter(_Plain(minor_thresholds=(2, 0.5)))


def _mark_breaks(axis: Any, train: list[Row]) -> None:
    """Shows where updates are missing from the curve because no loss was a finite number."""
    bad = [row["step"] for row in train if row["loss"] is None]
    if bad:
        axis.plot(
            bad, [0.04] * len(bad), "x", color=style.COLORS[1], transform=axis.get_xaxis_transform(), label="not finite"
        )
        axis.legend(fontsize=9)


def spoken(metric: str) -> str:
    """Returns a metric's name as people write it."""
    return {"": "metric", "mse": "MSE", "rmse": "RMSE"}.get(metric, metric.replace("_", " "))


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
