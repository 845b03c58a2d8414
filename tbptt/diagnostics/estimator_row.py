"""One row of the meter's table, and which rows no other one beats."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tbptt.diagnostics.bias import GradientError, compare_gradients
from tbptt.types import Params


class EstimatorRow(NamedTuple):
    """What `compare_estimators` measures of one estimator; Python numbers.

    estimator:        its name
    bias:             ||g - r|| / ||r||, g the mean over draws, r the float64 reference
    bias_error:       the part of bias that is chance: sqrt(variance / draws); 0 if nothing is drawn
    cosine:           <g, r> / (||g|| ||r||)
    sign_agreement:   share of entries with the sign of r
    variance:         E ||g_d - g||^2 / ||r||^2 over draws d (n - 1 in the denominator); 0 if nothing is drawn
    draws:            how many draws; 1 if nothing is drawn
    seconds_per_step: median seconds of one gradient / T, compilation apart
    bytes:            temporary bytes of the compiled program, as XLA plans them
    compile_seconds:  tracing and compiling it, once
    """

    estimator: str
    bias: float
    bias_error: float
    cosine: float
    sign_agreement: float
    variance: float
    draws: int
    seconds_per_step: float
    bytes: int
    compile_seconds: float


def make_row(name: str, gradients: Iterable[Params], r: Params, compile_seconds: float, size: int) -> EstimatorRow:
    """Averages the draws in float64 by Welford's recurrence, and compares with the reference."""
    mean, squares, n = jax.tree.map(lambda leaf: np.zeros(leaf.shape), r), 0.0, 0
    for gradient in gradients:
        n += 1
        away = jax.tree.map(lambda g, m: np.asarray(g, np.float64) - m, gradient, mean)
        mean = jax.tree.map(lambda m, a, n=n: m + a / n, mean, away)
        squares += (1 - 1 / n) * sum(float(np.sum(np.square(a))) for a in jax.tree.leaves(away))
    variance = squares / (n - 1) if n > 1 else 0.0
    variance /= sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(r))
    with jax.enable_x64(True):
        error: GradientError = compare_gradients(r, jax.tree.map(jnp.asarray, mean))
    return EstimatorRow(
        estimator=name,
        bias=float(error.relative_error),
        bias_error=float(np.sqrt(variance / n)),
        cosine=float(error.cosine),
        sign_agreement=float(error.sign_agreement),
        variance=variance,
        draws=n,
        seconds_per_step=float("nan"),
        bytes=int(size),
        compile_seconds=compile_seconds,
    )


def frontier(rows: list[EstimatorRow], *, rounding: float = 0.0) -> list[EstimatorRow]:
    """Keeps the estimators that no other one beats or equals in both bias and seconds; cheapest first.

    Two of equal bias and seconds stand for each other: the first is kept. Biases of at most `rounding` are taken to be
    equal: between two exact estimators in float32 only rounding decides, 1e-5 say.
    """
    best, kept = float("inf"), []
    for row in sorted(rows, key=lambda row: (row.seconds_per_step, row.bias)):
        if max(row.bias, rounding) < best:
            best = max(row.bias, rounding)
            kept.append(row)
    return kept
