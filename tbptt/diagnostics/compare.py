"""Measure bias, variance, time and memory of gradient estimators on a given model and data."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tbptt.diagnostics.bias import GradientError, compare_gradients
from tbptt.types import Batch, Carry, Estimator, Params, PRNGKey
from tbptt.windows import check_positive_int, length, split_windows, total_weight

# (params, carry, batch, key) -> gradient of the mean loss of the whole batch
BatchGradient = Callable[[Params, Carry, Batch, Any], Params]


class EstimatorRow(NamedTuple):
    """Results of `compare_estimators` for one estimator, as Python numbers.

    estimator:        its name
    bias:             ||g - r|| / ||r||, g the mean over draws, r the float64 reference
    bias_error:       standard error of the bias: sqrt(variance / draws); 0 without draws
    cosine:           <g, r> / (||g|| ||r||)
    sign_agreement:   fraction of entries with the sign of r
    variance:         E ||g_d - g||^2 / ||r||^2 over draws d (n - 1 in the denominator), or 0
    draws:            number of draws; 1 for a deterministic estimator
    seconds_per_step: median seconds of one gradient / T, without compilation
    bytes:            temporary bytes of the compiled program, as planned by XLA
    compile_seconds:  seconds of tracing and compiling, once
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


def compare_estimators(
    estimators: Mapping[str, Estimator],
    params: Params,
    carry: Carry,
    batch: Batch,
    *,
    reference: Estimator,
    segment: int | None = None,
    key: PRNGKey | None = None,
    draws: int = 32,
    repeats: int = 5,
) -> list[EstimatorRow]:
    """Measure bias, variance, time and memory of estimators, at the same parameters and data.

        r = reference.estimate(whole batch).grads, in float64
        for each estimator, for each draw d:
            for j, window in enumerate(split_windows(batch, segment)):
                g_j, memory = estimator.estimate(params, memory, window, key_dj)
            g_d = sum_j w_j g_j / sum_j w_j,    w_j = total weight of segment j

    The estimators run in the dtype of their arguments, so their rounding counts as bias. An
    estimator that raises without a key is random: it runs `draws` times, the others once. Not
    for use inside jit, because it compiles and measures time. Repeats alternate between
    estimators; on a busy machine the times are unreliable.

    Args:
      estimators: by name; for example `{"TBPTT(10, 50)": truncated_bptt(loss_fn, 10, 50)}`.
      params, carry: at which to compare; the carry enters the first step.
      batch: `[T, *batch, ...]`.
      reference: the exact gradient, for example `full_bptt(loss_fn)`. It runs in float64: build
        it from a cell with dtype=None or float64, whatever the dtype of the estimators.
      segment: steps per call of an estimator; static int that divides T, a multiple of every k1;
        None = T.
      key: for random estimators; consumed.
      draws: number of gradients of random estimators; at least 2.
      repeats: number of timed runs of each estimator.

    Returns:
      a row for each estimator, in the order given.

    Raises:
      ValueError: no estimators; segment does not divide T; draws < 2; a random estimator without
        a key; the reference does not run in float64, or its gradient is 0 or not finite.
    """
    T = length(batch)
    segment = T if segment is None else check_positive_int("segment", segment)
    draws, repeats = check_positive_int("draws", draws), check_positive_int("repeats", repeats)
    if draws < 2:
        raise ValueError(f"draws must be at least 2, to estimate a variance; got {draws}")
    if not estimators:
        raise ValueError(
            "estimators is empty; pass at least one, for example "
            "{'TBPTT(10, 50)': truncated_bptt(loss_fn, 10, 50)}"
        )
    r = _reference(reference, params, carry, batch)
    runs, rows = {}, {}
    for name, estimator in estimators.items():
        batch_gradient = _batch_gradient(estimator, segment)
        drawn = _needs_key(name, batch_gradient, params, carry, batch, key)
        first = key if drawn else None
        begin = time.perf_counter()
        compiled = jax.jit(batch_gradient).lower(params, carry, batch, first).compile()
        seconds = time.perf_counter() - begin
        keys = jax.random.split(key, draws) if drawn and key is not None else [None]
        gradients = (compiled(params, carry, batch, draw_key) for draw_key in keys)
        analysis: Any = compiled.memory_analysis()
        rows[name] = _make_row(name, gradients, r, seconds, analysis.temp_size_in_bytes)
        runs[name] = lambda run=compiled, draw_key=first: jax.block_until_ready(
            run(params, carry, batch, draw_key)
        )
    seconds = _interleaved_times(runs, repeats)
    return [row._replace(seconds_per_step=seconds[name] / T) for name, row in rows.items()]


def frontier(rows: list[EstimatorRow], *, rounding: float = 0.0) -> list[EstimatorRow]:
    """Return the Pareto frontier of bias and seconds, cheapest first.

    Of several rows with equal bias and seconds, the first is kept. Biases of at most `rounding`
    count as equal: between two exact estimators in float32 (about 1e-5) only rounding differs.
    """
    best, kept = float("inf"), []
    for row in sorted(rows, key=lambda row: (row.seconds_per_step, row.bias)):
        if max(row.bias, rounding) < best:
            best = max(row.bias, rounding)
            kept.append(row)
    return kept


def _make_row(
    name: str, gradients: Iterable[Params], r: Params, compile_seconds: float, size: int
) -> EstimatorRow:
    """Average the draws in float64 by Welford's recurrence, and compare with the reference."""
    mean, squares, n = jax.tree.map(lambda leaf: np.zeros(leaf.shape), r), 0.0, 0
    for gradient in gradients:
        n += 1
        deviation = jax.tree.map(lambda g, m: np.asarray(g, np.float64) - m, gradient, mean)
        mean = jax.tree.map(lambda m, a, n=n: m + a / n, mean, deviation)
        squares += (1 - 1 / n) * sum(
            float(np.sum(np.square(a))) for a in jax.tree.leaves(deviation)
        )
    variance = squares / (n - 1) if n > 1 else 0.0
    variance /= sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(r))
    with jax.enable_x64(True):
        # Compiled: each eager operation on a leaf of a new shape would be a program of its own.
        error: GradientError = jax.jit(compare_gradients)(r, jax.tree.map(jnp.asarray, mean))
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


def _batch_gradient(estimator: Estimator, segment: int) -> BatchGradient:
    """Return a function that computes the gradient of a batch, segment by segment."""

    def batch_gradient(params: Params, carry: Carry, batch: Batch, key: Any) -> Params:
        windows = split_windows(batch, segment, name="segment")
        keys = None if key is None else jax.random.split(key, length(windows))

        def body(state: Any, now: Any) -> tuple[Any, None]:
            memory, total = state
            window, window_key = now
            gradient = estimator.estimate(params, memory, window, window_key)
            w = total_weight(window)
            return (
                gradient.memory,
                jax.tree.map(lambda a, g: a + w.astype(g.dtype) * g, total, gradient.grads),
            ), None

        first = jax.tree.map(lambda leaf: leaf[0], windows)
        start = (estimator.init(params, carry, first), jax.tree.map(jnp.zeros_like, params))
        (_, total), _ = jax.lax.scan(body, start, (windows, keys))
        weight = total_weight(batch)
        return jax.tree.map(lambda g: g / weight.astype(g.dtype), total)

    return batch_gradient


def _reference(reference: Estimator, params: Params, carry: Carry, batch: Batch) -> Params:
    """Compute the reference's gradient with every floating leaf in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(_to_float64, (params, carry, batch))
        try:
            r = jax.jit(_batch_gradient(reference, length(batch)))(*wide, None)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the reference does not run in float64 ({error}). Build it from a cell with "
                "dtype=None or float64"
            ) from error
        size = float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(r))))
    if not np.isfinite(size) or size == 0:
        raise ValueError(
            f"the reference's gradient has norm {size}, so relative errors are undefined. Use "
            "other params or another batch"
        )
    return r


def _to_float64(leaf: Any) -> Any:
    return (
        jnp.asarray(leaf, jnp.float64)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        else jnp.asarray(leaf)
    )


def _needs_key(
    name: str, batch_gradient: BatchGradient, params: Params, carry: Carry, batch: Batch, key: Any
) -> bool:
    """Return whether the estimator needs a key; other errors occur with a key, too."""
    try:
        jax.eval_shape(batch_gradient, params, carry, batch, None)
    except (TypeError, ValueError) as error:
        if key is None:
            raise ValueError(
                f"{name} failed without a key ({error}). If it is random, pass "
                "key=jax.random.key(0)"
            ) from error
        jax.eval_shape(batch_gradient, params, carry, batch, key)
        return True
    return False


def _interleaved_times(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each run, alternating between runs to share machine drift."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}
