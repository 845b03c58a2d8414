"""A heart's currents, nine channels at 2048 Hz, forecast several steps ahead: does an LSTM beat a linear forecast?

    python -m experiments.ecg            about 4 minutes on two cores
    python -m experiments.ecg --quick    under 60 seconds, too short to conclude from

28.8 seconds: 40,000 steps to train on, 8,000 to choose by, 11,040 to test with. All nine channels are forecast 8, 16, 32
and 64 steps ahead (4 to 31 ms) at once. An LSTM is trained by TBPTT(k, k) for several k, and a ridge regression looks at
the last k samples of all nine channels, at most 64 of them a channel, its penalty chosen on the validation part: the same
reach (full BPTT over a lane meets the ridge that validates best). All networks have the same seconds (of the processor)
and take turns. Expected: nothing certain. The heart beats irregularly, the training part holds some twenty beats, and a
linear forecast is strong at such short horizons; "no better" is a result.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from experiments.support import ecg_figure, known, program
from experiments.support.console import console, human_bytes, table
from experiments.support.forecasting import Model
from experiments.support.linear_forecast import even_lags, ridge_forecast
from experiments.support.race import shown_race
from experiments.support.stream_runs import make_runners
from tbptt.data import ecg, lanes, standardise

TRAIN_END, TEST_START, LANES, LAGS = 40_000, 48_000, 16, 64
RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """An LSTM by TBPTT(k, k) against ridge regression of the same reach, on nine channels."""

    seeds: int = 3
    """runs of every window, each its own parameters"""
    seconds: float = 12.0
    """training seconds of every run, compilation apart"""
    horizons: tuple[int, ...] = (8, 16, 32, 64)
    """steps ahead, all forecast at once"""
    windows: tuple[int, ...] = (20, 50, 100, 250)
    """k1 = k2, steps; must divide the lanes' 2,500 steps, which is full BPTT"""
    hidden: int = 64
    """units of the LSTM"""
    lr: float = 5e-3
    """Adam's rate at the start; falls to 0 along half a cosine of the seconds used"""


def all_pairs(scaled: np.ndarray, horizons: tuple[int, ...]) -> tbptt.Batch:
    """Pairs every training step with all channels at all horizons, `[2500, 16, K C]`; targets beyond the part weigh 0."""
    inputs, last = scaled[:TRAIN_END], TRAIN_END - max(horizons)
    targets = np.hstack([scaled[h : TRAIN_END + h] for h in horizons])
    weights = (np.arange(TRAIN_END) < last).astype(np.float32)
    parts = (inputs.astype(np.float32), targets.astype(np.float32), weights)
    return tbptt.Batch(*(jnp.asarray(part) for part in lanes(parts, LANES)))


def make_score(model: Model, scaled: np.ndarray, horizons: tuple[int, ...]):
    """Makes `params -> (valid, test)`, mean squared errors `[K, C]` on the origins that `ridge_forecast` is scored on."""
    xs, ahead = jnp.asarray(scaled, jnp.float32), max(horizons)

    @jax.jit
    def run(params: Any) -> Any:
        return tbptt.predict(model.cell, model.readout, params, model.cell.initial_carry(), tbptt.Batch(xs, None))[1]

    def score(params: Any) -> tuple[np.ndarray, np.ndarray]:
        outputs, found = np.asarray(run(params), np.float64), []
        for start, end in ((TRAIN_END, TEST_START), (TEST_START, len(scaled))):
            origins = np.arange(start, end - ahead)
            truth = np.hstack([scaled[origins + h] for h in horizons])
            found.append(np.mean((outputs[origins] - truth) ** 2, axis=0).reshape(len(horizons), -1))
        return found[0], found[1]

    return score


def train_all(config: Config, model: Model, scaled: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Trains every window and seed in turns; returns a row a window, and the first seeds' curves."""
    batch, score = all_pairs(scaled, config.horizons), make_score(model, scaled, config.horizons)
    loss_fn = tbptt.sequence_loss(model.cell, model.readout, tbptt.squared_error)
    seeds, T = tuple(1000 * config.seed + i for i in range(config.seeds)), batch.inputs.shape[0]
    rows, runners, curves = [], [], {}
    for k in (*config.windows, T):
        estimator = tbptt.full_bptt(loss_fn) if k == T else tbptt.truncated_bptt(loss_fn, k, k)
        name = f"full BPTT, {T} steps" if k == T else f"TBPTT({k}, {k})"
        made, size = make_runners(name, model, batch, estimator, k, seeds, 1.0)
        runners += made
        rows.append({"name": name, "k": k, "temp_bytes": size})
    outcomes = shown_race(f"nine channels: {len(runners)} runs", runners, config.seconds, [config.lr] * len(runners))
    for i, row in enumerate(rows):
        mine = outcomes[i * config.seeds : (i + 1) * config.seeds]
        scores = [score(outcome.state.params) for outcome in mine]
        row["valid_mse"], row["test_mse"] = ([float(s[part].mean()) for s in scores] for part in (0, 1))
        row["by_horizon"] = np.mean([s[1] for s in scores], axis=(0, 2)).tolist()
        row["by_channel"] = np.mean([s[1] for s in scores], axis=(0, 1)).tolist()
        row |= {"updates": [o.updates for o in mine], "seconds": [round(o.seconds, 2) for o in mine]}
        curves[row["name"]] = mine[0].curve[:: max(1, len(mine[0].curve) // 200)]
    return rows, curves


def baselines(config: Config, scaled: np.ndarray) -> dict[str, Any]:
    """Scores the last value, the mean, and the ridge regression of every reach, on the test part."""
    test = (TEST_START, len(scaled))
    origins = np.arange(test[0], test[1] - max(config.horizons))
    still = np.array([np.mean((scaled[origins + h] - scaled[origins]) ** 2, axis=0) for h in config.horizons])
    mean = np.array([np.mean(scaled[origins + h] ** 2, axis=0) for h in config.horizons])
    ridge = []
    for reach in config.windows:
        lags = even_lags(reach, LAGS)
        found = ridge_forecast(scaled, lags, config.horizons, RIDGES, TRAIN_END, (TRAIN_END, TEST_START), test)
        row = {"reach": reach, "lags": len(lags), "ridge": found.ridge}
        row |= {"valid_mse": float(found.valid.mean()), "test_mse": float(found.test.mean())}
        row |= {"by_horizon": found.test.mean(1).tolist(), "by_channel": found.test.mean(0).tolist()}
        console.print(f"ridge AR, reach {reach}: validation {row['valid_mse']:.4f}, penalty {found.ridge:g}")
        ridge.append(row)
    by = {"last value": still, "mean": mean}
    plain = {name: {"test_mse": float(e.mean()), "by_horizon": e.mean(1).tolist()} for name, e in by.items()}
    return {"ridge": ridge, "plain": plain}


def measure(config: Config) -> dict[str, Any]:
    """Scores the linear forecasts and trains the networks."""
    if config.quick:
        config = dataclasses.replace(config, seconds=2.0, seeds=1, windows=(50, 250), hidden=32)
    recording = ecg()
    scaled, _ = standardise(recording.values, TRAIN_END)
    base = baselines(config, scaled)
    model = Model(tbptt.LSTM(scaled.shape[1], config.hidden), nn.Dense(len(config.horizons) * scaled.shape[1]))
    rows, curves = train_all(config, model, scaled)
    best = min(rows, key=lambda row: known.median(row["valid_mse"]))
    linear = min(base["ridge"], key=lambda row: row["valid_mse"])
    tell(rows, base)
    rival = next((row for row in base["ridge"] if row["reach"] == best["k"]), linear)
    target = expectation(best, rival)
    return {
        "curves": curves,
        "known": [target],
        "results": {
            "names": recording.names,
            "rate": recording.rate,
            "horizons": config.horizons,
            "rows": rows,
            "baselines": base,
            "chosen": best["name"],
            "chosen_ridge": rival["reach"],
            "verdict": "better" if target["reached"] else "no better",
        },
    }


def expectation(best: dict[str, Any], rival: dict[str, Any]) -> known.Row:
    """Compares the window that validates best with the ridge of its reach (of full BPTT: the ridge that validates best)."""
    against = rival["test_mse"]
    return known.expect(
        f"LSTM, {best['name']} (chosen on validation): test MSE over ridge AR's",
        [mse / against for mse in best["test_mse"]],
        at_most=1.0,
        because=f"ridge AR({rival['reach']}) of all nine channels has {against:.4f}",
        otherwise=f"No better than the linear forecast: {known.median(best['test_mse']):.4f} against {against:.4f} on the "
        "last 11,040 steps; the training part holds too few beats for a network.",
    )


def tell(rows: list[dict[str, Any]], base: dict[str, Any]) -> None:
    """Prints the tables a person reads."""
    table(
        "nine channels, four horizons, equal training seconds (medians over seeds)",
        ("estimator", "updates", "bytes of an update", "valid MSE", "test MSE"),
        [
            (
                row["name"],
                str(int(known.median(row["updates"]))),
                human_bytes(row["temp_bytes"]),
                f"{known.median(row['valid_mse']):.4f}",
                f"{known.median(row['test_mse']):.4f}",
            )
            for row in rows
        ],
    )
    linear = [
        (f"ridge AR({r['reach']}), {r['lags']} lags", f"{r['valid_mse']:.4f}", f"{r['test_mse']:.4f}")
        for r in base["ridge"]
    ]
    plain = [(name, "", f"{row['test_mse']:.4f}") for name, row in base["plain"].items()]
    table("without a network", ("forecast", "valid MSE", "test MSE"), linear + plain)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws error by reach, by horizon and by channel."""
    ecg_figure.draw(data, folder)


if __name__ == "__main__":
    program.run(__file__)
