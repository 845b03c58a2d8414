"""Gradient by lag, the horizon that dynamics predict, and the bias and cost of TBPTT(k1, k2): one plot (claim 10).

    python -m experiments.lag_profile            about 60 seconds on two cores

An LSTM is trained on `ppg` and one on Mackey-Glass (synthetic, no network). Expected: the lag at which 1 % of the gradient
is left is the one that the largest Lyapunov exponent predicts, within a factor of 2; the bias of the truncated gradient
falls with k2 as the gradient by lag does, and is below 10 % at the first window that is twice that lag (as measured);
its norm neither explodes nor vanishes at any window; cost grows with k2.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from experiments.support import program
from experiments.support.forecasting import Job, Model, Run, make_job, temp_bytes, train
from experiments.support.lag_figure import draw as draw
from tbptt.clipping import global_norm
from tbptt.data import mackey_glass, ppg
from tbptt.diagnostics import compare_gradients, lag_profile, lyapunov_spectrum, measured_horizon, memory_horizon

WINDOWS = (5, 10, 25, 50, 100, 200, 400, 1000)
LENGTH, QUICK_LENGTH = 4000, 2000


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Profile, horizon, bias and cost of a trained LSTM on two recordings."""

    hidden: int = 32
    """units"""
    seconds: float = 8.0
    """training seconds before measuring"""
    lags: int = 400
    """lags of the profile"""


def jobs(seed: int) -> dict[str, Job]:
    """Both recordings as forecasting jobs, 32 steps ahead, 36 lanes of 5,000 steps."""
    recordings = {"ppg": ppg(2), "mackey_glass": mackey_glass(220_000, seed=seed)}
    return {name: make_job(r, (32,), 36, 180_000, 200_000) for name, r in recordings.items()}


def trained(job: Job, model: Model, config: Config) -> Run:
    """Trains with TBPTT(50, 50)."""
    loss_fn = tbptt.sequence_loss(model.cell, model.readout, tbptt.squared_error)
    seconds = 1.0 if config.quick else config.seconds
    return train(
        tbptt.truncated_bptt(loss_fn, 50, 50),
        model,
        job,
        50,
        lr=6e-3,
        clip=1.0,
        seconds=seconds,
        seed=config.seed,
        report=lambda used, loss: None,
    )


def gradient(estimator: tbptt.Estimator, params: Any, carry: Any, batch: tbptt.Batch) -> Any:
    """Returns an estimator's gradient of the whole batch, its windows at fixed parameters."""
    memory = estimator.init(params, carry, batch)
    return jax.jit(lambda p, b: estimator.estimate(p, memory, b).grads)(params, batch)


def measured(job: Job, model: Model, params: Any, config: Config, with_bytes: bool) -> dict[str, Any]:
    """Measures the profile of h and c, the predicted horizon, and every window's bias, norm and bytes."""
    cell, lanes = model.cell, 8
    length = QUICK_LENGTH if config.quick else LENGTH
    batch = jax.tree.map(lambda leaf: leaf[:length, :lanes], job.batch)
    carry = cell.initial_carry((lanes,))
    at = np.arange(config.lags + 100, length, 300)

    def error(y: jax.Array, s: jax.Array) -> jax.Array:
        outputs: Any = model.readout.apply(params.readout, y)
        return jnp.sum(tbptt.squared_error(outputs, batch.targets[s]))

    seen = jax.jit(lambda p: lag_profile(cell, p, carry, batch.inputs, error, lags=config.lags, at=at))(params.cell)
    spectrum = jax.jit(lambda p: lyapunov_spectrum(cell, p, cell.initial_carry(), batch.inputs[:, 0], count=1, warmup=500))
    rate = float(spectrum(params.cell).exponents[0])
    loss_fn = tbptt.sequence_loss(cell, model.readout, tbptt.squared_error)
    reference = gradient(tbptt.full_bptt(loss_fn), params, carry, batch)
    rows = []
    for k2 in (5, 50, 400, 1000) if config.quick else WINDOWS:
        k1 = min(k2, 50)
        estimator = tbptt.truncated_bptt(loss_fn, k1, k2)
        grads = gradient(estimator, params, carry, batch)
        error_ = compare_gradients(reference, grads)
        example = jax.tree.map(lambda a, n=k1: a[:n], batch)
        rows.append(
            {
                "k1": k1,
                "k2": k2,
                "bias": float(error_.relative_error),
                "cosine": float(error_.cosine),
                "norm": float(global_norm(grads) / global_norm(reference)),
                "temp_bytes": temp_bytes(tbptt.make_train_step, estimator, model, example) if with_bytes else None,
            }
        )
    return {
        "profile": {name: np.asarray(mean, np.float64).tolist() for name, mean in seen.mean._asdict().items()},
        "low": {n: np.asarray(q[0], np.float64).tolist() for n, q in seen.quantiles._asdict().items()},
        "high": {n: np.asarray(q[2], np.float64).tolist() for n, q in seen.quantiles._asdict().items()},
        "rate": rate,
        "predicted": finite(memory_horizon(jnp.asarray(rate), 0.01)),
        "measured": {name: finite(lag) for name, lag in measured_horizon(seen, 0.01)._asdict().items()},
        "windows": rows,
    }


def beyond(result: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the first window of at least twice the measured horizon of h and c; None if none is, or it is infinite."""
    horizon = max(math.inf if lag is None else lag for lag in result["measured"].values())
    return next((row for row in result["windows"] if row["k2"] >= 2 * horizon), None)


def near(result: dict[str, Any]) -> bool:
    """Whether the predicted horizon and both measured ones agree within a factor of 2."""
    lags = [result["predicted"], *result["measured"].values()]
    return None not in lags and max(lags) < 2 * min(lags)


def finite(value: Any) -> float | None:
    """JSON has no infinity: None, for a gradient that is not forgotten within the profile's lags."""
    return float(value) if np.isfinite(value) else None


def measure(config: Config) -> dict[str, Any]:
    """Trains and measures on both recordings."""
    model, results = Model(tbptt.LSTM(1, config.hidden), nn.Dense(1)), {}
    for name, job in jobs(config.seed).items():
        results[name] = measured(job, model, trained(job, model, config).params, config, name == "ppg")
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
                f"bias of the truncated gradient at k2 = {first} and {last}",
                ", ".join(f"{n}: {row[0]:.2f} and {row[-1]:.1e}" for n, row in falls.items()),
                "falls at least tenfold, to below 0.1",
                all(row[-1] < min(0.1, row[0] / 10) for row in falls.values()),
            ),
            program.claim(
                10,
                "lag at which 1 % of the gradient is left: predicted from the largest exponent; measured for h and for c",
                ", ".join(
                    f"{n}: {d['predicted'] or math.inf:.0f}; {' and '.join(str(lag) for lag in d['measured'].values())}"
                    for n, d in results.items()
                ),
                "within a factor of 2",
                all(near(d) for d in results.values()),
            ),
            program.claim(
                10,
                "bias at the first window of at least twice the measured lag",
                ", ".join(f"{n}: none" if r is None else f"{n}: {r['bias']:.1e} at {r['k2']}" for n, r in after.items()),
                "below 0.1",
                all(r is not None and r["bias"] < 0.1 for r in after.values()),
            ),
            program.claim(
                10,
                "a truncated gradient neither explodes nor vanishes: its norm over the full one's, least and most",
                f"{min(norms):.2f}; {max(norms):.2f}",
                "between 0.01 and 100",
                0.01 < min(norms) and max(norms) < 100,
            ),
            program.claim(
                10,
                f"bytes of one step at k2 = {last} over those at {first}",
                f"{bytes_[-1] / bytes_[0]:.0f}",
                "over 10",
                bytes_[-1] > 10 * bytes_[0],
            ),
        ],
    }


if __name__ == "__main__":
    program.run(__file__)
