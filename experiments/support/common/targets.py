"""Known numbers: what the literature says a task reaches, what was measured over seeds, and whether it is reached.

    rows = [known.expect("LSTM, T = 100: test MSE", errors, at_most=0.005), ...]      # in an experiment's `measure`
    return {..., "known": rows}                                                      # `program.execute` takes it from there

The summary then holds `expected` {what: text}, `measured` {what: a number a seed}, `reached` (all of them) and `targets`
(the rows); `python -m experiments.table` reads these. A number that a standard run does not reach makes its exit status 1;
`program.exit_status` has the rule.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.support.common import style
from experiments.support.common.console import console

Row = dict[str, Any]


def median(values: Sequence[float]) -> float:
    """The middle seed."""
    return float(np.median(np.asarray(values, float)))


def smallest(values: Sequence[float]) -> float:
    """The smallest seed: `at_least` then holds for all of them."""
    return float(np.min(np.asarray(values, float)))


def largest(values: Sequence[float]) -> float:
    """The largest seed: `at_most` then holds for all of them."""
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
    """Makes one row: a number that should be reached, and whether it is.

        reached = at_least <= of(measured) <= at_most          # a bound that is None is no bound; NaN reaches nothing

    Args:
      what: what the numbers are, with their unit: "LSTM, T = 100: test MSE". One row a name.
      measured: a number a seed; one number alone is one run.
      at_least, at_most: what is expected; one of them, or both. May be a number of the same run (a baseline).
      of: `median`, `smallest` or `largest` of the seeds.
      because: where the expectation is from: "a constant answer has 2/3", "an order-5 n-gram of the same run".
      otherwise: one sentence with the evidence, shown only if it is NOT reached.

    Raises:
      ValueError: no bound, or nothing measured.
    """
    values = [float(value) for value in np.atleast_1d(np.asarray(measured, float))]
    if not values or (at_least is None and at_most is None):
        raise ValueError(f"{what}: give numbers and at_least, at_most or both; got {values}, {at_least}, {at_most}")
    low = -math.inf if at_least is None else float(at_least)
    high = math.inf if at_most is None else float(at_most)
    value = of(values)
    bounds = [f"at least {number(low)}"] * (at_least is not None) + [f"at most {number(high)}"] * (at_most is not None)
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
    """Four digits; NaN where there is none."""
    return "NaN" if value is None else f"{value:.4g}"


def describe(row: Row) -> str:
    """Says what was measured: 'median 0.0009 (0.0007 to 0.0046)', or the number alone."""
    if len(row["measured"]) == 1:
        return number(row["value"])
    known = [value for value in row["measured"] if value is not None]
    spread = f"{number(min(known))} to {number(max(known))}" if known else "no seed is finite"
    lost = len(row["measured"]) - len(known)
    return f"{row['statistic']} {number(row['value'])} ({spread}" + (f"; {lost} not finite)" if lost and known else ")")


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Makes the summary's part: expected, measured, reached, seeds, targets.

    Raises:
      ValueError: two rows of one name.
    """
    names = [row["what"] for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"every expectation needs a name of its own; got twice: {', '.join(sorted(twice))}")
    return {
        "expected": {row["what"]: row["expected"] for row in rows},
        "measured": {row["what"]: row["measured"] for row in rows},
        "reached": bool(rows) and all(row["reached"] for row in rows),
        "seeds": max((len(row["measured"]) for row in rows), default=0),
        "targets": list(rows),
    }


def tell(rows: Sequence[Row]) -> None:
    """Prints the rows a person reads."""
    for row in rows:
        mark = "[green]reached[/green]" if row["reached"] else "[bold red]NOT reached[/bold red]"
        console.print(f"{row['what']}: {describe(row)}; expected {row['expected']}: {mark}", highlight=False)
        if not row["reached"] and row["otherwise"]:
            console.print(f"    {row['otherwise']}", highlight=False)


def dots(axis: Any, x: float, values: Sequence[float | None], index: int = 0, label: str | None = None) -> None:
    """Draws a dot a seed around x, and their median as a bar."""
    known = [math.nan if value is None else value for value in values]
    shift = np.linspace(-0.12, 0.12, len(known)) if len(known) > 1 else np.zeros(1)
    color = style.COLORS[index % len(style.COLORS)]
    marker = style.MARKERS[index % len(style.MARKERS)]
    axis.plot(x + shift, known, marker, color=color, ms=5, mfc="none", label=label)
    axis.plot([x - 0.2, x + 0.2], [np.median(known)] * 2, color=color, lw=2)


def bound(axis: Any, row: Row) -> None:
    """Draws a row's bounds as dotted lines."""
    for name, level in (("at least", row["at_least"]), ("at most", row["at_most"])):
        if level is not None:
            axis.axhline(level, color=style.GREY, lw=1.2, ls=":", label=f"{row['statistic']} {name} {number(level)}")


def _json(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
