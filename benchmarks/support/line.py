"""Does the cost of a step of TBPTT(k1, k2) grow along a straight line in k2 / k1? The fit, and the largest deviation."""

from typing import Any

import jax
import numpy as np

import tbptt
from benchmarks import clock
from benchmarks.support import problem
from benchmarks.support.program import target

RATIOS = (1, 2, 4, 8, 16)
# Within this of the line, issue 4 asks.
WITHIN = 0.2


def fit(ratios: Any, costs: Any) -> dict[str, Any]:
    """Fits cost = a + b ratio by least squares, and through the two end points; deviations relative to the line's value."""
    x, y = np.asarray(ratios, float), np.asarray(costs, float)
    slope, intercept = np.polyfit(x, y, 1)
    two_ends = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    line = intercept + slope * x
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "largest_deviation": float(np.max(np.abs(y / line - 1))),
        "largest_deviation_from_two_ends": float(np.max(np.abs(y / two_ends - 1))),
    }


def measure(k1: int, windows: int, B: int, D: int, H: int, repeats: int) -> dict[str, Any]:
    """Times `windows` windows of k1 steps for each ratio, in the stream's middle: the remembered past is full."""
    T = k1 * windows
    made = problem.make(T, B, D, H)
    loss_fn = problem.our_loss(made)
    programs = {}
    for ratio in RATIOS:
        estimator = tbptt.truncated_bptt(loss_fn, k1, k1 * ratio)
        function, (params, memory, batch) = problem.estimating(estimator, made)
        if ratio > 1:  # the first windows of a stream are shorter, and so cheaper: feed their steps before the clock starts
            past = jax.tree.map(lambda a, n=k1 * (ratio - 1): a[:n], batch)
            memory = jax.jit(estimator.estimate)(params, memory, past).memory
        programs[ratio] = clock.prepare(function, params, memory, batch)
    timings = clock.race({str(ratio): program for ratio, program in programs.items()}, repeats)
    costs = [timings[str(ratio)].seconds / T for ratio in RATIOS]
    return {
        "k1": k1, "ratios": list(RATIOS), "seconds_per_step": costs, "within": WITHIN,
        "spread": {name: timing._asdict() for name, timing in timings.items()}, **fit(RATIOS, costs),
    }  # fmt: skip


def targets(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The row of issue 4's table."""
    case = f"TBPTT({line['k1']}, k2), k2/k1 = {RATIOS[0]} to {RATIOS[-1]}"
    what = "relative deviation of the cost per step"
    return [target(case, what, "a straight line", WITHIN, line["largest_deviation"], most=True)]
