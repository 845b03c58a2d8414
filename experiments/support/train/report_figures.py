"""Draw the figures of a run's report, as PNG bytes: errors, predictions, loss and gradients."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import dates, ticker

from experiments.support.common import style
from tbptt.fit.metrics_file import Row

# Longer curves are drawn as means over intervals, with a band from the smallest to the largest
# value.
POINTS = 600
WIDE = 9.0  # inches; every figure is also drawn for narrow screens
WIDE_DPI, NARROW_DPI = 130, 200  # dots per inch; about 100 are shown


class Line(NamedTuple):
    """A curve: label, x `[n]` (dates or numbers), y `[n]`, and index of its style; None is grey."""

    label: str
    x: np.ndarray
    y: np.ndarray
    style: int | None = None


def losses(
    train: list[Row],
    valid: list[Row],
    metric: str,
    scale: float | None = None,
    chosen: int | None = None,
    width: float = WIDE,
) -> bytes:
    """Draw the training loss and the validation metric against updates.

    Args:
        train, valid: rows of metrics.jsonl.
        metric: name of the metric.
        scale: standard deviation of the target of a forecast: its validation rmse is then drawn in
          the unit of the loss, (rmse / scale)^2, on the same axis.
        chosen: update of the checkpoint that is used; marked.
        width: in inches.
    """
    points = [(row["step"], row[metric]) for row in valid if metric and row.get(metric) is not None]
    one_unit = scale is not None or metric == "bits_per_byte"  # of the loss and the metric
    rows = 1 if one_unit or not points else 2
    figure, axes = _panels(rows, width, 3.0)
    axis = axes[0, 0]
    _curve(axis, train, "loss", 0, "training, before each update")
    if points and scale is not None:
        points = [(step, (value / scale) ** 2) for step, value in points]
    steps, values = np.array(points or np.zeros((0, 2)), np.float64).T
    last = axes[-1, 0]
    if len(steps):
        marker = "s" if len(steps) < 60 else None
        last.plot(steps, values, marker=marker, ms=4, label="validation", **style.line(1))
    for one in axes.flat:
        if one is axis or metric != "accuracy":
            _log_scale_if_positive(one)
        if chosen is not None:
            one.axvline(chosen, color=style.GREY, lw=1.2, ls=":", label="checkpoint used")
    if chosen is not None and chosen in steps:
        at = (chosen, values[steps == chosen][-1])
        last.plot(*at, "o", ms=11, mfc="none", mec="black", mew=1.8)
    axis.set_ylabel(
        "loss" if scale is not None else "bits per byte" if one_unit else "training loss"
    )
    if rows == 2:
        last.set_ylabel(f"validation {display_name(metric)}")
    last.set_xlabel("updates")
    _mark_breaks(axis, train)
    _legend(axis)
    return _png(figure, axes)


def gradients(train: list[Row], clip: float | None, width: float = WIDE) -> bytes:
    """Draw mean and largest gradient norm before clipping, and the fraction clipped."""
    shares = any(row["clipped"] is not None for row in train)
    figure, axes = _panels(1 + shares, width, 2.6)
    axis = axes[0, 0]
    _curve(axis, train, "grad_norm", 0, "mean over the updates of a log line")
    _curve(axis, train, "grad_norm_max", 1, "largest", join=np.maximum.reduceat)
    if clip:
        axis.axhline(clip, color=style.GREY, lw=1.2, ls=":", label=f"clipped at {clip:g}")
    _log_scale_if_positive(axis)
    axis.set_ylabel("gradient norm")
    if shares:
        percent = [
            {**row, "clipped": None if row["clipped"] is None else 100 * row["clipped"]}
            for row in train
        ]
        _curve(axes[1, 0], percent, "clipped", 0, "")
        axes[1, 0].set(ylabel="clipped (%)", ylim=(-3, 103))
    _mark_breaks(axis, train)
    _legend(axis)
    axes[-1, 0].set_xlabel("updates")
    return _png(figure, axes)


def by_horizon(
    lines: Sequence[Line], ylabel: str, xlabel: str = "rows ahead", width: float = WIDE
) -> bytes:
    """Draw the error of the model and of baselines against the horizon."""
    figure, axes = _panels(1, width, 3.4)
    axis = axes[0, 0]
    for line in lines:
        _line(axis, line, marker="o" if len(line.x) < 40 else None)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_ylim(bottom=0)
    _legend(axis)
    return _png(figure, axes)


def segments(
    panels: Sequence[tuple[str, Sequence[Line]]], ylabel: str, xlabel: str, width: float = WIDE
) -> bytes:
    """Draw segments of predictions and the truth, one panel each, on equal vertical scales.

    Args:
        panels: (title, curves) of each segment.
        ylabel, xlabel: names of the axes; dates on the x axis need no name.
        width: in inches.
    """
    figure, axes = _panels(len(panels), width, 2.9, sharex=False, sharey=True)
    for axis, (title, lines) in zip(axes.flat, panels, strict=True):
        for line in lines:  # a truth between missing ones is a point
            _line(axis, line, marker="." if np.isnan(line.y).any() else None)
        axis.set_title(textwrap.fill(title, 100 if width > 6 else 46), fontsize=9, loc="left")
        axis.set_ylabel(ylabel)
        _date_axis(axis, lines, width)
        axis.set_xlabel(xlabel)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, **_outside(width))
    return _png(figure, axes)


def confusion(truth: np.ndarray, prediction: np.ndarray, width: float = WIDE) -> bytes:
    """Draw the confusion matrix in percent of the true class, with counts beside the names."""
    names = sorted(set(truth.tolist()) | set(prediction.tolist()), key=_as_number)
    counts = np.array([[np.sum((truth == a) & (prediction == b)) for b in names] for a in names])
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(width, 2.6 + 0.55 * len(names))
    figure, axes = plt.subplots(
        1, 1, figsize=(min(size + 1, width), size), layout="constrained", squeeze=False
    )
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
    axis.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0)
    axis.set_yticks(
        range(len(names)),
        [f"{name} ({n})" for name, n in zip(names, counts.sum(axis=1), strict=True)],
    )
    axis.set(xlabel="predicted class", ylabel="true class (count)")
    figure.colorbar(image, ax=axis, label="% of the true class")
    return _png(figure, axes, grid=False, dpi=WIDE_DPI if width > 6 else NARROW_DPI)


def display_name(metric: str) -> str:
    """Return the name of a metric for display."""
    short = {"": "metric", "mae": "MAE", "rmse": "RMSE"}
    return short.get(metric, metric.replace("_", " ").replace("rmse", "RMSE"))


def short_number(value: float) -> str:
    """Return a number with three digits: 2.60, 0.0123, 12,300."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")


def _panels(
    rows: int, width: float, height: float, sharex: bool = True, sharey: bool = False
) -> tuple[Any, np.ndarray]:
    """Make panels below each other, a little higher for their width on a narrow screen."""
    height *= 1.0 if width > 6 else 0.85
    return plt.subplots(
        rows, 1, figsize=(width, height * rows + 0.4), layout="constrained", squeeze=False,
        sharex=sharex, sharey=sharey,
    )  # fmt: skip


def _line(axis: Any, line: Line, **more: Any) -> None:
    look = (
        {"color": style.GREY, "lw": 1.4, "ls": "-"}
        if line.style is None
        else style.line(line.style)
    )
    axis.plot(line.x, line.y, label=line.label, ms=3, **look, **more)


def _outside(width: float) -> dict[str, Any]:
    """Return where a legend is: above the axes, in one column on a narrow screen."""
    place = {"fontsize": 9, "frameon": False, "loc": "outside upper left"}
    return place | {"ncols": 3 if width > 6 else 1}


def _legend(axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        figure = axis.figure
        figure.legend(handles, labels, **_outside(figure.get_figwidth()))


def _date_axis(axis: Any, lines: Sequence[Line], width: float) -> None:
    if not lines or lines[0].x.dtype.kind != "M":
        return
    locator = dates.AutoDateLocator(minticks=2, maxticks=8 if width > 6 else 5)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


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
        label=label or None,
        marker="o" if len(values) < 12 else None,
        ms=4,
    )


class _Plain(ticker.LogFormatter):
    """Formatter of a logarithmic axis that writes plain numbers at matplotlib's ticks."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _log_scale_if_positive(axis: Any) -> None:
    values = [np.asarray(line.get_ydata(), np.float64) for line in axis.lines]
    if not values or not all((one > 0).all() for one in values):
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_Plain())
    axis.yaxis.set_minor_formatter(_Plain(minor_thresholds=(2, 0.5)))


def _mark_breaks(axis: Any, train: list[Row]) -> None:
    """Mark updates whose gradient was not finite."""
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


def _as_number(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _png(figure: Any, axes: Any, *, grid: bool = True, dpi: int | None = None) -> bytes:
    for axis in axes.flat if grid else ():
        axis.grid(alpha=0.3)
        if not isinstance(axis.xaxis.get_major_formatter(), dates.ConciseDateFormatter):
            axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.10g}"))
            axis.xaxis.set_major_locator(
                ticker.MaxNLocator(9 if figure.get_figwidth() > 6 else 5, steps=[1, 2, 5, 10])
            )
    buffer = io.BytesIO()
    dpi = dpi or (WIDE_DPI if figure.get_figwidth() > 6 else NARROW_DPI)
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()
