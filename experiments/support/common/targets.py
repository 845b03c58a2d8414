"""Compare measured numbers with targets from the literature or from baselines.

    rows = [targets.expect("LSTM, T = 100: test MSE", errors, at_most=0.005), ...]
    return {..., "targets": rows}                                 # from `measure`

The summary then contains `expected` {what: text}, `measured` {what: one number per seed}, `reached`
(whether all targets are) and `targets` (the rows), which `python -m experiments.table` reads. If a
standard run misses a target, its exit status is 1, see `program.exit_status`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.support.common import style
from experiments.support.common.console import console

Row = dict[str, Any]


def median(values: Sequence[float]) -> float:
    """Return the median over seeds."""
    return float(np.median(np.asarray(values, float)))


def smallest(values: Sequence[float]) -> float:
    """Return the smallest value over seeds; with it, `at_least` is a bound on all of them."""
    return float(np.min(np.asarray(values, float)))


def largest(values: Sequence[float]) -> float:
    """Return the largest value over seeds; with it, `at_most` is a bound on all of them."""
    return float(np.max(np.asarray(values, float)))


def expect(
    what: str,
    measured: float | Sequence[float] | np.ndarray,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    of: Callable[[Sequence[float]], float] = median,
    because: str = "",
    otherwise: str = "",
) -> Row:
    """Compare measured numbers with a target and return the result as a row.

        reached = at_least <= of(measured) <= at_most       # None is no bound; NaN reaches nothing

    Args:
      what: unique name of the numbers, with their unit: "LSTM, T = 100: test MSE".
      measured: one number per seed; a single number is one run.
      at_least, at_most: the target, one of them or both. A bound may be a number of the same run (a
        baseline).
      of: `median`, `smallest` or `largest` of the seeds.
      because: the source of the target: "a constant prediction has 2/3", "an order-5 n-gram of the
        same run".
      otherwise: one sentence with the evidence, shown only if the target is missed.

    Raises:
      ValueError: no bound is given, or `measured` is empty.
    """
    values = [float(value) for value in np.atleast_1d(np.asarray(measured, float))]
    if not values or (at_least is None and at_most is None):
        raise ValueError(
            f"{what}: measured must not be empty, and at_least, at_most or both must be given; got "
            f"measured={values}, "
            f"at_least={at_least}, at_most={at_most}"
        )
    low = -math.inf if at_least is None else float(at_least)
    high = math.inf if at_most is None else float(at_most)
    value = of(values)
    bounds = [f"at least {number(low)}"] * (at_least is not None) + [f"at most {number(high)}"] * (
        at_most is not None
    )
    name = f"{of.__name__} " if len(values) > 1 else ""
    return {
        "what": what,
        "expected": name + " and ".join(bounds) + (f" ({because})" if because else ""),
        "measured": [_json(v) for v in values],
        "statistic": of.__name__,
        "value": _json(value),
        "at_least": at_least if at_least is None else low,
        "at_most": at_most if at_most is None else high,
        "reached": low <= value <= high,
        "otherwise": otherwise,
    }


def number(value: float | None) -> str:
    """Format a number with four digits; None is NaN."""
    return "NaN" if value is None else f"{value:.4g}"


def describe(row: Row) -> str:
    """Format measured numbers: 'median 0.0009 (0.0007 to 0.0046)', or a single number."""
    if len(row["measured"]) == 1:
        return number(row["value"])
    finite = [value for value in row["measured"] if value is not None]
    spread = f"{number(min(finite))} to {number(max(finite))}" if finite else "no seed is finite"
    lost = len(row["measured"]) - len(finite)
    return f"{row['statistic']} {number(row['value'])} ({spread}" + (
        f"; {lost} not finite)" if lost and finite else ")"
    )


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the fields of the summary: expected, measured, reached, seeds, targets.

    Raises:
      ValueError: two rows have the same name.
    """
    names = [row["what"] for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"the names of targets must be unique; got twice: {', '.join(sorted(twice))}"
        )
    return {
        "expected": {row["what"]: row["expected"] for row in rows},
        "measured": {row["what"]: row["measured"] for row in rows},
        "reached": bool(rows) and all(row["reached"] for row in rows),
        "seeds": max((len(row["measured"]) for row in rows), default=0),
        "targets": list(rows),
    }


def show(rows: Sequence[Row]) -> None:
    """Print the rows on stderr."""
    for row in rows:
        mark = "[green]reached[/green]" if row["reached"] else "[bold red]NOT reached[/bold red]"
        console.print(
            f"{row['what']}: {describe(row)}; expected {row['expected']}: {mark}", highlight=False
        )
        if not row["reached"] and row["otherwise"]:
            console.print(f"    {row['otherwise']}", highlight=False)


def dots(
    axis: Any, x: float, values: Sequence[float | None], index: int = 0, label: str | None = None
) -> None:
    """Draw one dot per seed around x, and their median as a bar."""
    heights = [math.nan if value is None else value for value in values]
    shift = np.linspace(-0.12, 0.12, len(heights)) if len(heights) > 1 else np.zeros(1)
    color = style.COLORS[index % len(style.COLORS)]
    marker = style.MARKERS[index % len(style.MARKERS)]
    axis.plot(x + shift, heights, marker, color=color, ms=5, mfc="none", label=label)
    axis.plot([x - 0.2, x + 0.2], [np.median(heights)] * 2, color=color, lw=2)


def bound(axis: Any, row: Row) -> None:
    """Draw the bounds of a row as dotted lines."""
    for name, level in (("at least", row["at_least"]), ("at most", row["at_most"])):
        if level is not None:
            axis.axhline(
                level,
                color=style.GREY,
                lw=1.2,
                ls=":",
                label=f"{row['statistic']} {name} {number(level)}",
            )


def _json(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
