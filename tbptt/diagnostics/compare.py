"""The meter: how wrong each estimator is on one's own model and data, and what it costs."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tbptt.diagnostics.estimator_row import EstimatorRow, make_row
from tbptt.types import Batch, Carry, Estimator, Params, PRNGKey
from tbptt.windows import check_window, cut, length, total_weight

# (params, carry, batch, key) -> gradient of the whole batch's mean loss
Fed = Callable[[Params, Carry, Batch, Any], Params]


def compare_estimators(
    estimators: Mapping[str, Estimator],
    params: Params,
    carry: Carry,
    batch: Batch,
    *,
    reference: Estimator,
    piece: int | None = None,
    key: PRNGKey | None = None,
    draws: int = 32,
    repeats: int = 5,
) -> list[EstimatorRow]:
    """Measures bias, variance, time and memory of estimators, at the same parameters and on the same data.

        r = reference.estimate(whole batch).grads, in float64
        for each estimator, for each draw d:
            for j, window in enumerate(cut(batch, piece)): g_j, memory = estimator.estimate(params, memory, window, key_dj)
            g_d = sum_j w_j g_j / sum_j w_j,    w_j = total weight of piece j

    The estimators run in the dtype of what they are given, so their rounding counts as bias. An estimator that raises
    without a key is one that draws: it is run `draws` times, the others once. Not for use inside jit: it compiles and
    times. Repeats are interleaved over estimators; on a busy machine the seconds say little.

    Args:
      estimators: by name; for example `{"TBPTT(10, 50)": truncated_bptt(loss_fn, 10, 50)}`.
      params, carry: at which to compare; the carry enters the first step.
      batch: `[T, *batch, ...]`.
      reference: what is right, for example `full_bptt(loss_fn)`; it runs in float64: build it of a cell with
        dtype=None or float64, whatever the estimators' own dtype.
      piece: steps fed at a time; static int that divides T, a multiple of every k1; None = T.
      key: for estimators that draw; consumed.
      draws: gradients drawn of those; at least 2.
      repeats: timed runs of each.

    Returns:
      a row for each estimator, in the order given.

    Raises:
      ValueError: no estimators; piece does not divide T; draws < 2; an estimator draws, and there is no key; the
        reference does not run in float64, or its gradient is 0 or not finite, so that nothing can be compared with it.
    """
    T = length(batch)
    piece = T if piece is None else check_window("piece", piece)
    draws, repeats = check_window("draws", draws), check_window("repeats", repeats)
    if draws < 2:
        raise ValueError(f"draws must be at least 2, so that there is a variance; got {draws}")
    if not estimators:
        raise ValueError(
            "estimators is empty; give at least one, for example {'TBPTT(10, 50)': truncated_bptt(loss_fn, 10, 50)}"
        )
    r = _reference(reference, params, carry, batch)
    runs, rows = {}, {}
    for name, estimator in estimators.items():
        fed = _feeding(estimator, piece)
        drawn = _draws(name, fed, params, carry, batch, key)
        first = key if drawn else None
        begin = time.perf_counter()
        compiled = jax.jit(fed).lower(params, carry, batch, first).compile()
        seconds = time.perf_counter() - begin
        keys = jax.random.split(key, draws) if drawn and key is not None else [None]
        gradients = (compiled(params, carry, batch, use) for use in keys)
        analysis: Any = compiled.memory_analysis()
        rows[name] = make_row(name, gradients, r, seconds, analysis.temp_size_in_bytes)
        runs[name] = lambda run=compiled, use=first: jax.block_until_ready(run(params, carry, batch, use))
    seconds = _in_turns(runs, repeats)
    return [row._replace(seconds_per_step=seconds[name] / T) for name, row in rows.items()]


def _feeding(estimator: Estimator, piece: int) -> Fed:
    """The gradient of a batch that is fed piece after piece at fixed parameters."""

    def fed(params: Params, carry: Carry, batch: Batch, key: Any) -> Params:
        windows = cut(batch, piece, name="piece")
        keys = None if key is None else jax.random.split(key, length(windows))

        def body(state: Any, now: Any) -> tuple[Any, None]:
            memory, total = state
            window, use = now
            gradient = estimator.estimate(params, memory, window, use)
            w = total_weight(window)
            return (gradient.memory, jax.tree.map(lambda a, g: a + w.astype(g.dtype) * g, total, gradient.grads)), None

        first = jax.tree.map(lambda leaf: leaf[0], windows)
        start = (estimator.init(params, carry, first), jax.tree.map(jnp.zeros_like, params))
        (_, total), _ = jax.lax.scan(body, start, (windows, keys))
        weight = total_weight(batch)
        return jax.tree.map(lambda g: g / weight.astype(g.dtype), total)

    return fed


def _reference(reference: Estimator, params: Params, carry: Carry, batch: Batch) -> Params:
    """The reference's gradient with every floating leaf in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(_widened, (params, carry, batch))
        try:
            r = jax.jit(_feeding(reference, length(batch)))(*wide, None)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the reference does not run in float64 ({error}). Build it of a cell with dtype=None or float64"
            ) from error
        size = float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(r))))
    if not np.isfinite(size) or size == 0:
        raise ValueError(
            f"the reference's gradient has norm {size}: nothing can be compared with it. Other params or batch?"
        )
    return r


def _widened(leaf: Any) -> Any:
    return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else jnp.asarray(leaf)


def _draws(name: str, fed: Fed, params: Params, carry: Carry, batch: Batch, key: Any) -> bool:
    """Says whether the estimator needs a key; what it raises for another reason, it raises with a key too."""
    try:
        jax.eval_shape(fed, params, carry, batch, None)
    except (TypeError, ValueError) as error:
        if key is None:
            raise ValueError(
                f"{name} gave no gradient without a key ({error}). If it draws, give key=jax.random.key(0)"
            ) from error
        jax.eval_shape(fed, params, carry, batch, key)
        return True
    return False


def _in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns, so that the machine's drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}
