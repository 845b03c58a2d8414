"""The cost of a step of TBPTT(k1, k2) by k2 / k1, and a straight line fitted to it."""

from typing import Any

import jax
import numpy as np

import tbptt
from benchmarks import clock
from benchmarks.support import problem
from benchmarks.support.program import target

RATIOS = (1, 2, 4, 8, 16)
WITHIN = 0.2  # relative deviation from the line that the target allows


def fit(ratios: Any, costs: Any) -> dict[str, Any]:
    """Fit cost = a + b ratio by least squares, and through the two end points.

    Deviations are relative to the value of the line.
    """
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


def measure(
    k1: int,
    windows: int,
    B: int,
    D: int,
    H: int,
    repeats: int,
    unroll: tbptt.UnrollFn = tbptt.unroll,
) -> dict[str, Any]:
    """Time `windows` windows of k1 steps for each ratio, in the middle of a stream.

    The remembered past is full there, so that every window has its whole length.
    """
    T = k1 * windows
    made = problem.make(T, B, D, H)
    loss_fn = problem.our_loss(made, unroll=unroll)
    programs = {}
    for ratio in RATIOS:
        estimator = tbptt.truncated_bptt(loss_fn, k1, k1 * ratio)
        function, (params, memory, batch) = problem.estimating(estimator, made)
        if ratio > 1:  # the first windows of a stream are shorter: estimate them before the timing
            past = jax.tree.map(lambda a, n=k1 * (ratio - 1): a[:n], batch)
            memory = jax.jit(estimator.estimate)(params, memory, past).memory
        programs[str(ratio)] = clock.compile_program(function, params, memory, batch)
    timings = clock.time_interleaved(programs, repeats)
    costs = [timings[str(ratio)].seconds / T for ratio in RATIOS]
    return {
        "k1": k1,
        "ratios": list(RATIOS),
        "seconds_per_step": costs,
        "within": WITHIN,
        "spread": {name: timing._asdict() for name, timing in timings.items()},
        **fit(RATIOS, costs),
    }


def targets(line: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the target of the line: its largest relative deviation."""
    case = f"TBPTT({line['k1']}, k2), k2/k1 = {RATIOS[0]} to {RATIOS[-1]}"
    what = "relative deviation of the cost per step"
    return [target(case, what, "a straight line", WITHIN, line["largest_deviation"], most=True)]
