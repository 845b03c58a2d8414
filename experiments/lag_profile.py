"""Measure the gradient by lag, its horizon, and bias and cost of TBPTT(k1, k2) (claim 10).

    python -m experiments.lag_profile            about 60 seconds on two cores

One LSTM is trained on the pulse recording `ppg`, another on the synthetic Mackey-Glass series.
Expected: the lag at which 1 % of the median gradient is left is the one that the largest Lyapunov
exponent predicts, within a factor of 2. The mean, to which a few large gradients contribute most,
decays later. The bias of the truncated gradient falls with k2 as the mean by lag does, and is below
10 % at the first window of at least twice the lag at which 1 % of the mean is left. The norm
neither explodes nor vanishes at any window, and the memory grows with k2.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from experiments.support.common import program
from experiments.support.common.forecasting import Job, Model, estimator_of, make_job, train
from experiments.support.common.unroll_choice import choose_unroll
from experiments.support.lecture.lag_figure import draw as draw
from tbptt.data import mackey_glass, ppg
from tbptt.diagnostics import (
    LagProfile,
    compare_gradients,
    lag_profile,
    lyapunov_spectrum,
    measured_horizon,
    memory_horizon,
)
from tbptt.optim import global_norm

WINDOWS, QUICK_WINDOWS = (5, 10, 25, 50, 100, 200, 400, 1000), (5, 50, 1000)
LENGTH, QUICK_LENGTH = 4000, 2000
ROWS = 8  # batch rows that are measured
LEFT = 0.01  # fraction of the gradient that defines the horizon


@dataclasses.dataclass(frozen=True)
class Config(program.Trained):
    """Profile, horizon, bias and cost of a trained LSTM on two recordings."""

    hidden: int = 32
    """units"""
    epochs: int = 40
    """passes over the training part before measuring"""
    lags: int = 400
    """lags of the profile"""


def jobs(config: Config) -> dict[str, Job]:
    """Make a forecasting job of each recording, 32 steps ahead, with batch rows of 5,000 steps."""
    rows, end, samples = (12, 60_000, 61_000) if config.quick else (36, 180_000, 220_000)
    recordings = {"ppg": ppg(2), "mackey_glass": mackey_glass(samples, seed=config.seed)}
    return {name: make_job(r, (32,), rows, end, end + 500) for name, r in recordings.items()}


def trained(job: Job, model: Model, config: Config) -> Any:
    """Train with TBPTT(50, 50) and return the parameters."""
    epochs = 3 if config.quick else config.epochs
    return train(
        estimator_of(model, 50, 50),
        model,
        job,
        50,
        lr=6e-3,
        clip=1.0,
        epochs=epochs,
        seed=config.seed,
    ).params


@functools.partial(jax.jit, static_argnums=(0, 3))
def profile(
    model: Model, params: Any, batch: tbptt.Batch, lags: int
) -> tuple[LagProfile, Any, Any, jax.Array, jax.Array]:
    """Return the gradient by lag of losses 100 steps apart, the measured horizons of its median and
    of its mean, the largest Lyapunov exponent (averaged over batch rows), and the horizon that this
    exponent predicts."""
    cell = model.cell

    def error(y: jax.Array, s: jax.Array) -> jax.Array:
        outputs: Any = model.readout.apply(params.readout, y)
        return jnp.sum(tbptt.squared_error(outputs, jnp.asarray(batch.targets)[s]))

    T, rows = batch.inputs.shape[:2]
    at = np.arange(lags + 100, T, 100)
    norms = lag_profile(
        cell, params.cell, cell.initial_carry((rows,)), batch.inputs, error, lags=lags, at=at
    )
    medians = norms._replace(mean=jax.tree.map(lambda q: q[1], norms.quantiles))

    def exponent(xs: jax.Array) -> jax.Array:
        start = cell.initial_carry()
        return lyapunov_spectrum(cell, params.cell, start, xs, count=1, warmup=500).exponents[0]

    rate = jnp.mean(jax.vmap(exponent, in_axes=1)(batch.inputs))
    return (
        norms,
        measured_horizon(medians, LEFT),
        measured_horizon(norms, LEFT),
        rate,
        memory_horizon(rate, LEFT),
    )


def estimate(model: Model, estimator: tbptt.Estimator, params: Any, batch: tbptt.Batch) -> Any:
    """Return the gradient of an estimator for the whole batch, with fixed parameters."""
    carry = model.cell.initial_carry(batch.inputs.shape[1:2])
    return estimator.estimate(params, estimator.init(params, carry, batch), batch).grads


@functools.partial(jax.jit, static_argnums=0)
def full_gradient(model: Model, params: Any, batch: tbptt.Batch) -> Any:
    """Return the gradient by full BPTT."""
    return estimate(model, tbptt.full_bptt(model.loss_fn()), params, batch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def compared(
    model: Model, k1: int, k2: int, params: Any, batch: tbptt.Batch, reference: Any
) -> dict[str, jax.Array]:
    """Return bias, cosine and relative norm of the gradient by TBPTT(k1, k2)."""
    grads = estimate(model, estimator_of(model, k1, k2), params, batch)
    error = compare_gradients(reference, grads)
    norm = global_norm(grads) / global_norm(reference)
    return {"bias": error.relative_error, "cosine": error.cosine, "norm": norm}


def measured(config: Config, model: Model) -> dict[str, dict[str, Any]]:
    """Measure profile, horizon, and bias, norm and bytes of every window, on each recording."""
    results, programs = {}, {}
    for name, job in jobs(config).items():
        params = trained(job, model, config)
        batch = jax.tree.map(
            lambda leaf: leaf[: QUICK_LENGTH if config.quick else LENGTH, :ROWS], job.batch
        )
        norms, median, mean, rate, predicted = profile(model, params, batch, config.lags)
        reference = full_gradient(model, params, batch)
        rows = []
        for k2 in QUICK_WINDOWS if config.quick else WINDOWS:
            k1 = min(k2, 50)
            if k2 not in programs:
                programs[k2] = compared.lower(model, k1, k2, params, batch, reference).compile()
            row = {
                name: float(value) for name, value in programs[k2](params, batch, reference).items()
            }
            temp_bytes = programs[k2].memory_analysis().temp_size_in_bytes
            rows.append({"k1": k1, "k2": k2, "temp_bytes": temp_bytes, **row})
        results[name] = {
            "profile": {
                name: np.asarray(values, np.float64).tolist()
                for name, values in norms.mean._asdict().items()
            },
            **{
                level: {
                    n: np.asarray(q[i], np.float64).tolist()
                    for n, q in norms.quantiles._asdict().items()
                }
                for i, level in enumerate(("low", "median", "high"))
            },
            "rate": float(rate),
            "predicted": finite(predicted),
            "measured": {name: finite(lag) for name, lag in median._asdict().items()},
            "measured_mean": {name: finite(lag) for name, lag in mean._asdict().items()},
            "windows": rows,
        }
    return results


def beyond(result: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first window of at least twice the measured horizon of the mean of h and c.

    None if none is, or it is infinite.
    """
    horizon = max(math.inf if lag is None else lag for lag in result["measured_mean"].values())
    return next((row for row in result["windows"] if row["k2"] >= 2 * horizon), None)


def near(result: dict[str, Any]) -> bool:
    """Return whether the predicted horizon and both measured ones agree within a factor of 2."""
    lags = [result["predicted"], *result["measured"].values()]
    return None not in lags and max(lags) < 2 * min(lags)


def finite(value: Any) -> float | None:
    """Return None for infinity, a horizon beyond the lags of the profile."""
    return float(value) if np.isfinite(value) else None


def measure(config: Config) -> dict[str, Any]:
    """Train and measure on both recordings."""
    model = Model(tbptt.LSTM(1, config.hidden), nn.Dense(1), choose_unroll(config.unroll))
    results = measured(config, model)
    falls = {n: [r["bias"] for r in d["windows"]] for n, d in results.items()}
    after = {n: beyond(d) for n, d in results.items()}
    norms = [r["norm"] for d in results.values() for r in d["windows"]]
    first, last = (results["ppg"]["windows"][i]["k2"] for i in (0, -1))
    bytes_ = [r["temp_bytes"] for r in results["ppg"]["windows"]]
    return {
        "results": results,
        "claims": [
            program.claim(
                10,
                f"relative bias of the truncated gradient at k2 = {first} and {last}",
                ", ".join(f"{n}: {row[0]:.2f} and {row[-1]:.1e}" for n, row in falls.items()),
                "it falls at least tenfold, to below 0.1",
                all(row[-1] < min(0.1, row[0] / 10) for row in falls.values()),
            ),
            program.claim(
                10,
                "lag at which 1 % of the gradient is left: predicted from the largest exponent; "
                "measured for the median of h and of c",
                ", ".join(
                    f"{n}: {d['predicted'] or math.inf:.0f}; "
                    + " and ".join(f"{lag or math.inf:.0f}" for lag in d["measured"].values())
                    for n, d in results.items()
                ),
                "equal within a factor of 2",
                all(near(d) for d in results.values()),
            ),
            program.claim(
                10,
                "bias at the first window of at least twice the lag of 1 % of the mean",
                ", ".join(
                    f"{n}: none" if r is None else f"{n}: {r['bias']:.1e} at {r['k2']}"
                    for n, r in after.items()
                ),
                "below 0.1",
                all(r is not None and r["bias"] < 0.1 for r in after.values()),
            ),
            program.claim(
                10,
                "a truncated gradient neither explodes nor vanishes: smallest and largest norm, "
                "full gradient = 1",
                f"{min(norms):.2f}; {max(norms):.2f}",
                "between 0.01 and 100",
                0.01 < min(norms) and max(norms) < 100,
            ),
            program.claim(
                10,
                f"temporary memory of the gradient at k2 = {last} over that at k2 = {first}",
                f"{bytes_[-1] / bytes_[0]:.0f}",
                "over 10",
                bytes_[-1] > 10 * bytes_[0],
            ),
        ],
    }


if __name__ == "__main__":
    program.run(__file__)
