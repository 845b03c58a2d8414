"""The parts of the recording of `experiments.ecg`: what a network sees, what it should say, what it is scored on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import tbptt
from experiments.support.common.forecasting import Model
from tbptt.data import split_into_streams

TRAIN_END, TEST_START, LANES = 40_000, 48_000, 16
WARM_UP, SEGMENTS = 1000, 8  # steps ahead of each of the stretches that the validation part is cut into


def recent(scaled: Float[np.ndarray, "T C"], past: int) -> Float[np.ndarray, "T CP"]:
    """What a network sees at a step: the sample, and by how much each of the last `past` ones differed from it.

        seen[t] = [x[t], x[t - 1] - x[t], ..., x[t - past] - x[t]]         # x[-1], x[-2], ... = x[0]

    every column standardised over the training part.
    """
    steps = np.arange(len(scaled))
    changes = [scaled[np.maximum(steps - lag, 0)] - scaled for lag in range(1, past + 1)]
    seen = np.hstack([scaled, *changes])
    return (seen - seen[:TRAIN_END].mean(0)) / seen[:TRAIN_END].std(0)


def all_pairs(seen: np.ndarray, scaled: np.ndarray, base: np.ndarray, horizons: tuple[int, ...], first: int) -> tbptt.Batch:
    """Pairs every training step with what the base forecast leaves of all channels at all horizons, `[2500, 16, K C]`.

    Args: base: `[T, K C]`, 0 for a network alone; first: the first step that base forecasts from. Steps before it, and
    those whose targets lie beyond the part, weigh 0.
    """
    last, steps = TRAIN_END - max(horizons), np.arange(TRAIN_END)
    targets = np.hstack([scaled[h : TRAIN_END + h] for h in horizons]) - base[:TRAIN_END]
    weights = ((first <= steps) & (steps < last)).astype(np.float32)
    parts = (seen[:TRAIN_END].astype(np.float32), targets.astype(np.float32), weights)
    return tbptt.Batch(*(jnp.asarray(part) for part in split_into_streams(parts, LANES)))


def make_score(model: Model, seen: np.ndarray, scaled: np.ndarray, base: np.ndarray, horizons: tuple[int, ...]):
    """Makes `params -> (valid, test)`, mean squared errors `[K, C]` on the origins that `ridge_forecast` is scored on."""
    xs, ahead = jnp.asarray(seen, jnp.float32), max(horizons)

    @jax.jit
    def run(params: Any) -> Any:
        return tbptt.predict(model.cell, model.readout, params, model.cell.initial_carry(), tbptt.Batch(xs, None))[1]

    def score(params: Any) -> tuple[np.ndarray, np.ndarray]:
        outputs, found = base + np.asarray(run(params), np.float64), []
        for start, end in ((TRAIN_END, TEST_START), (TEST_START, len(scaled))):
            origins = np.arange(start, end - ahead)
            truth = np.hstack([scaled[origins + h] for h in horizons])
            found.append(np.mean((outputs[origins] - truth) ** 2, axis=0).reshape(len(horizons), -1))
        return found[0], found[1]

    return score


def make_keep(
    model: Model, seen: np.ndarray, scaled: np.ndarray, base: np.ndarray, horizons: tuple[int, ...]
) -> Callable[[tuple[float, Any] | None, tbptt.TrainState], tuple[float, Any]]:
    """Makes a runner's `keep`: the parameters whose error on the validation part was least after any of its turns.

    The part is cut into SEGMENTS stretches side by side, each warmed up on the steps before it; what is kept is
    (error, params). The untrained network does not count.
    """
    length, ahead = (TEST_START - TRAIN_END) // SEGMENTS, max(horizons)
    starts = TRAIN_END + length * np.arange(SEGMENTS)
    steps = starts[None, :] + np.arange(-WARM_UP, length)[:, None]
    xs, origins = jnp.asarray(seen[steps], jnp.float32), steps[WARM_UP:]
    targets = jnp.asarray(np.concatenate([scaled[origins + h] for h in horizons], axis=-1) - base[origins], jnp.float32)
    counts = jnp.asarray(origins + ahead < TEST_START, jnp.float32)

    @jax.jit
    def error(params: Any) -> jax.Array:
        batch, carry = tbptt.Batch(xs, None), model.cell.initial_carry((SEGMENTS,))
        outputs = tbptt.predict(model.cell, model.readout, params, carry, batch)[1][WARM_UP:]
        return jnp.sum(counts * jnp.mean((outputs - targets) ** 2, axis=-1)) / jnp.sum(counts)

    def keep(kept: tuple[float, Any] | None, state: tbptt.TrainState) -> tuple[float, Any]:
        now = float(error(state.params))
        if kept is not None and kept[0] <= now:
            return kept
        return now, jax.tree.map(np.array, state.params)  # copied: the next turn overwrites the state

    return keep
