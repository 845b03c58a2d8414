"""A heart's currents, nine channels at 2048 Hz, forecast several steps ahead: does an LSTM beat a linear forecast?

    python -m experiments.ecg            about 8 minutes on two cores
    python -m experiments.ecg --quick    under 60 seconds, too short to conclude from

28.8 seconds: 40,000 steps to train on, 8,000 to choose by, 11,040 to test with. All nine channels are forecast 8, 16, 32
and 64 steps ahead (4 to 31 ms) at once. A ridge regression looks at the last k samples of all nine channels, at most 64 of
them a channel, its penalty chosen on the validation part. An LSTM, which at a step sees the sample and how it differs from
the last seven, is trained by TBPTT(k, k) for several k, in two forms: alone, and on the ridge that validates best, where it
says what that leaves. All networks have the same seconds (of the processor) and take turns, and each keeps the parameters
that validate best after any of its passes, as the ridge keeps the penalty that does.

Compared on the test part: the network that validates best, and the ridge of the same reach or the one that validates best,
whichever is better there. Expected: nothing certain. The heart beats irregularly, the training part holds some twenty
beats, and a linear forecast is strong at such short horizons; "no better" is a result, and an LSTM alone is no better.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

import tbptt
from experiments.support.common import program
from experiments.support.common import targets as known
from experiments.support.common.console import human_bytes, table
from experiments.support.common.equal_time import shown_race
from experiments.support.common.forecasting import Model
from experiments.support.estimators.stream_runs import make_runners
from experiments.support.tasks import ecg_figure
from experiments.support.tasks.ecg_baselines import Form, baselines
from experiments.support.tasks.ecg_data import TRAIN_END, all_pairs, make_keep, make_score, recent
from tbptt.data import ecg, standardise

PAST = 7


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
    """Adam's rate at the start, of a network alone; falls to 0 along half a cosine of the seconds used"""
    correction_lr: float = 1e-3
    """the same, of a network on a ridge"""


def train_all(
    config: Config, model: Model, scaled: np.ndarray, forms: tuple[Form, ...]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Trains every form, window and seed in turns; returns a row a form and window, and the first seeds' curves."""
    seen = recent(scaled, PAST)
    seeds = tuple(1000 * config.seed + i for i in range(config.seeds))
    loss_fn = tbptt.sequence_loss(model.cell, model.readout, tbptt.squared_error)
    rows, runners, curves, scores, rates = [], [], {}, [], []
    for form in forms:
        batch = all_pairs(seen, scaled, form.base, config.horizons, form.first)
        keep = make_keep(model, seen, scaled, form.base, config.horizons)
        score = make_score(model, seen, scaled, form.base, config.horizons)
        T = batch.inputs.shape[0]
        for k in (*config.windows, T):
            estimator = tbptt.full_bptt(loss_fn) if k == T else tbptt.truncated_bptt(loss_fn, k, k)
            window = f"full BPTT, {T} steps" if k == T else f"TBPTT({k}, {k})"
            made, size = make_runners(f"{form.name}, {window}", model, batch, estimator, k, seeds, 1.0, keep)
            runners += made
            rates += [form.lr] * len(made)
            rows.append({"name": f"{form.name}, {window}", "form": form.name, "k": k, "temp_bytes": size})
            scores.append(score)
    outcomes = shown_race(f"nine channels: {len(runners)} runs", runners, config.seconds, rates)
    for i, (row, score) in enumerate(zip(rows, scores, strict=True)):
        mine = outcomes[i * config.seeds : (i + 1) * config.seeds]
        errors = [score(outcome.kept[1]) for outcome in mine]
        row["valid_mse"], row["test_mse"] = ([float(e[part].mean()) for e in errors] for part in (0, 1))
        row["last_test_mse"] = [float(score(outcome.state.params)[1].mean()) for outcome in mine]
        row["by_horizon"] = np.mean([e[1] for e in errors], axis=(0, 2)).tolist()
        row["by_channel"] = np.mean([e[1] for e in errors], axis=(0, 1)).tolist()
        row |= {"updates": [o.updates for o in mine], "seconds": [round(o.seconds, 2) for o in mine]}
        curves[row["name"]] = mine[0].curve[:: max(1, len(mine[0].curve) // 200)]
    return rows, curves


def measure(config: Config) -> dict[str, Any]:
    """Scores the linear forecasts and trains the networks."""
    if config.quick:
        config = dataclasses.replace(config, seconds=1.5, seeds=1, windows=(20, 250), hidden=32)
    recording = ecg()
    scaled, _ = standardise(recording.values, TRAIN_END)
    base, forms = baselines(scaled, config.windows, config.horizons, config.lr, config.correction_lr)
    readout = nn.Dense(len(config.horizons) * scaled.shape[1], kernel_init=nn.initializers.zeros)
    model = Model(tbptt.LSTM(scaled.shape[1] * (PAST + 1), config.hidden), readout)  # begins with the form's base
    rows, curves = train_all(config, model, scaled, forms)
    best, alone = (
        min(part, key=lambda row: known.median(row["valid_mse"]))
        for part in (rows, [row for row in rows if row["form"] == forms[0].name])
    )
    linear = min(base["ridge"], key=lambda row: row["valid_mse"])
    tell(rows, base)
    same = next((row for row in base["ridge"] if row["reach"] == best["k"]), linear)
    rival = min(linear, same, key=lambda row: row["test_mse"])
    target = expectation(best, alone, rival)
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
            "chosen_alone": alone["name"],
            "chosen_ridge": rival["reach"],
            "verdict": "better" if target["reached"] else "no better",
        },
    }


def expectation(best: dict[str, Any], alone: dict[str, Any], rival: dict[str, Any]) -> known.Row:
    """Compares the network that validates best with a ridge; one that says nothing would have 1 where it stands on it."""
    against, by_itself = rival["test_mse"], known.median(alone["test_mse"])
    return known.expect(
        f"{best['name']} (chosen on validation): test MSE over ridge AR's",
        [mse / against for mse in best["test_mse"]],
        at_most=0.999,
        of=known.largest,
        because=f"ridge AR({rival['reach']}) of all nine channels has {against:.4f}; {alone['name']}, has {by_itself:.4f}",
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
