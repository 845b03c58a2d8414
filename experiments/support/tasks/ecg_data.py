"""Make the inputs, training batch and scores of `experiments.ecg`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import tbptt
from experiments.support.common.forecasting import Model
from tbptt.data import split_into_streams

TRAIN_END, TEST_START, ROWS = 40_000, 48_000, 16
# Warm-up steps before each segment of the validation part, and their number.
WARM_UP, SEGMENTS = 1000, 8


def with_differences(scaled: Float[np.ndarray, "T C"], past: int) -> Float[np.ndarray, "T CP"]:
    """Return the sample and the differences of the previous `past` samples from it.

        inputs[t] = [x[t], x[t - 1] - x[t], ..., x[t - past] - x[t]]   # x[t < 0] = x[0]

    with every column standardised over the training part.
    """
    steps = np.arange(len(scaled))
    changes = [scaled[np.maximum(steps - lag, 0)] - scaled for lag in range(1, past + 1)]
    inputs = np.hstack([scaled, *changes])
    return (inputs - inputs[:TRAIN_END].mean(0)) / inputs[:TRAIN_END].std(0)


def training_batch(
    inputs: np.ndarray, scaled: np.ndarray, base: np.ndarray, horizons: tuple[int, ...], first: int
) -> tbptt.Batch:
    """Make the training batch, with the residuals of the base forecast as targets.

    Args:
      base: `[T, K C]`, 0 for a network alone.
      first: the first step with a base forecast. Steps before it, and steps whose targets lie
        beyond the training part, have weight 0.
    """
    last, steps = TRAIN_END - max(horizons), np.arange(TRAIN_END)
    targets = np.hstack([scaled[h : TRAIN_END + h] for h in horizons]) - base[:TRAIN_END]
    weights = ((first <= steps) & (steps < last)).astype(np.float32)
    parts = (inputs[:TRAIN_END].astype(np.float32), targets.astype(np.float32), weights)
    return tbptt.Batch(*(jnp.asarray(part) for part in split_into_streams(parts, ROWS)))


def make_score(
    model: Model,
    inputs: np.ndarray,
    scaled: np.ndarray,
    base: np.ndarray,
    horizons: tuple[int, ...],
):
    """Make `params -> (valid, test)`, mean squared errors `[K, C]`, as in `ridge_forecast`."""
    batch, ahead = tbptt.Batch(jnp.asarray(inputs, jnp.float32), None), max(horizons)

    @jax.jit
    def run(params: Any) -> Any:
        carry = model.cell.initial_carry()
        return tbptt.predict(model.cell, model.readout, params, carry, batch, unroll=model.unroll)[
            1
        ]

    def score(params: Any) -> tuple[np.ndarray, np.ndarray]:
        outputs, found = base + np.asarray(run(params), np.float64), []
        for start, end in ((TRAIN_END, TEST_START), (TEST_START, len(scaled))):
            origins = np.arange(start, end - ahead)
            truth = np.hstack([scaled[origins + h] for h in horizons])
            found.append(
                np.mean((outputs[origins] - truth) ** 2, axis=0).reshape(len(horizons), -1)
            )
        return found[0], found[1]

    return score


def make_keep(
    model: Model,
    inputs: np.ndarray,
    scaled: np.ndarray,
    base: np.ndarray,
    horizons: tuple[int, ...],
) -> Callable[[tuple[float, Any] | None, tbptt.TrainState], tuple[float, Any]]:
    """Make the `keep` of a runner: (error, params) with the lowest validation error.

    The validation part is split into SEGMENTS batch rows, each with a warm-up on the steps before
    it. The untrained network does not count.
    """
    length, ahead = (TEST_START - TRAIN_END) // SEGMENTS, max(horizons)
    starts = TRAIN_END + length * np.arange(SEGMENTS)
    steps = starts[None, :] + np.arange(-WARM_UP, length)[:, None]
    xs, origins = jnp.asarray(inputs[steps], jnp.float32), steps[WARM_UP:]
    targets = jnp.asarray(
        np.concatenate([scaled[origins + h] for h in horizons], axis=-1) - base[origins],
        jnp.float32,
    )
    counts = jnp.asarray(origins + ahead < TEST_START, jnp.float32)

    @jax.jit
    def error(params: Any) -> jax.Array:
        batch, carry = tbptt.Batch(xs, None), model.cell.initial_carry((SEGMENTS,))
        _, outputs = tbptt.predict(
            model.cell, model.readout, params, carry, batch, unroll=model.unroll
        )
        outputs = outputs[WARM_UP:]
        return jnp.sum(counts * jnp.mean((outputs - targets) ** 2, axis=-1)) / jnp.sum(counts)

    def keep(kept: tuple[float, Any] | None, state: tbptt.TrainState) -> tuple[float, Any]:
        now = float(error(state.params))
        if kept is not None and kept[0] <= now:
            return kept
        # A copy, as the next turn overwrites the state.
        return now, jax.tree.map(np.array, state.params)

    return keep
