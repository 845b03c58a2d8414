"""Compare LSTM and linear forecasts of an ECG recording with nine channels at 2048 Hz.

    python -m experiments.ecg            about 8 minutes on two cores
    python -m experiments.ecg --quick    under 60 seconds, too short for conclusions

The recording has 28.8 seconds: 40,000 steps for training, 8,000 for validation, 11,040 for the
test. All nine channels are forecast 8, 16, 32 and 64 steps ahead (4 to 31 ms) at once. A ridge
regression uses the last k samples of all nine channels, at most 64 per channel, with the penalty
chosen on the validation part. An LSTM, whose input is the sample and its differences from the
previous seven, is trained by TBPTT(k, k) for several k, in two forms: alone, and on the residuals
of the best ridge by validation. All networks train for the same CPU seconds, in turns. Each keeps
its best parameters by validation after any pass, as the ridge keeps its best penalty.

On the test part, the best network by validation is compared with the ridge of the same k or the
best ridge by validation, whichever is better there. No result is certain: the heart beats
irregularly, the training part has about twenty beats, and a linear forecast is accurate at such
short horizons. An LSTM alone is expected to be no better.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

import tbptt
from experiments.support.common import program, targets
from experiments.support.common.console import human_bytes, table
from experiments.support.common.equal_time import run_with_progress
from experiments.support.common.forecasting import Model
from experiments.support.common.unroll_choice import choose_unroll
from experiments.support.estimators.stream_runs import make_runners
from experiments.support.tasks import ecg_figure
from experiments.support.tasks.ecg_baselines import Form, baselines
from experiments.support.tasks.ecg_data import (
    TRAIN_END,
    make_keep,
    make_score,
    training_batch,
    with_differences,
)
from tbptt.data import ecg, standardise

PAST = 7


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """An LSTM by TBPTT(k, k) and ridge regression with the same k, on nine channels."""

    seeds: int = 3
    """number of seeds of every window, each with its own parameters"""
    seconds: float = 12.0
    """training seconds of every run, without compilation"""
    horizons: tuple[int, ...] = (8, 16, 32, 64)
    """numbers of steps ahead, all forecast at once"""
    windows: tuple[int, ...] = (20, 50, 100, 250)
    """values of k1 = k2 in steps, divisors of the 2,500 steps of a training sequence, which are
    full BPTT"""
    hidden: int = 64
    """units of the LSTM"""
    lr: float = 5e-3
    """initial learning rate of Adam of a network alone; cosine decay to 0 over the training
    seconds"""
    correction_lr: float = 1e-3
    """the same for a network on the residuals of a ridge"""


def train_all(
    config: Config, model: Model, scaled: np.ndarray, forms: tuple[Form, ...]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train every form, window and seed in turns.

    Return a row per form and window, and the curves of the first seed.
    """
    inputs = with_differences(scaled, PAST)
    seeds = tuple(1000 * config.seed + i for i in range(config.seeds))
    loss_fn = model.loss_fn()
    rows, runners, curves, scores, rates = [], [], {}, [], []
    for form in forms:
        batch = training_batch(inputs, scaled, form.base, config.horizons, form.first)
        keep = make_keep(model, inputs, scaled, form.base, config.horizons)
        score = make_score(model, inputs, scaled, form.base, config.horizons)
        T = batch.inputs.shape[0]
        for k in (*config.windows, T):
            estimator = tbptt.full_bptt(loss_fn) if k == T else tbptt.truncated_bptt(loss_fn, k, k)
            window = f"full BPTT, {T} steps" if k == T else f"TBPTT({k}, {k})"
            made, size = make_runners(
                f"{form.name}, {window}", model, batch, estimator, k, seeds, 1.0, keep
            )
            runners += made
            rates += [form.lr] * len(made)
            rows.append(
                {"name": f"{form.name}, {window}", "form": form.name, "k": k, "temp_bytes": size}
            )
            scores.append(score)
    outcomes = run_with_progress(
        f"nine channels: {len(runners)} runs", runners, config.seconds, rates
    )
    for i, (row, score) in enumerate(zip(rows, scores, strict=True)):
        mine = outcomes[i * config.seeds : (i + 1) * config.seeds]
        errors = [score(outcome.kept[1]) for outcome in mine]
        row["valid_mse"], row["test_mse"] = (
            [float(e[part].mean()) for e in errors] for part in (0, 1)
        )
        row["last_test_mse"] = [float(score(outcome.state.params)[1].mean()) for outcome in mine]
        row["by_horizon"] = np.mean([e[1] for e in errors], axis=(0, 2)).tolist()
        row["by_channel"] = np.mean([e[1] for e in errors], axis=(0, 1)).tolist()
        row |= {
            "updates": [o.updates for o in mine],
            "seconds": [round(o.seconds, 2) for o in mine],
        }
        curves[row["name"]] = mine[0].curve[:: max(1, len(mine[0].curve) // 200)]
    return rows, curves


def measure(config: Config) -> dict[str, Any]:
    """Score the linear forecasts and train the networks."""
    if config.quick:
        config = dataclasses.replace(config, seconds=1.5, seeds=1, windows=(20, 250), hidden=32)
    recording = ecg()
    scaled, _ = standardise(recording.values, TRAIN_END)
    base, forms = baselines(
        scaled, config.windows, config.horizons, config.lr, config.correction_lr
    )
    readout = nn.Dense(len(config.horizons) * scaled.shape[1], kernel_init=nn.initializers.zeros)
    # The readout of zeros makes the untrained network equal to the base forecast of its form.
    model = Model(
        tbptt.LSTM(scaled.shape[1] * (PAST + 1), config.hidden),
        readout,
        choose_unroll(config.unroll),
    )
    rows, curves = train_all(config, model, scaled, forms)
    best, alone = (
        min(part, key=lambda row: targets.median(row["valid_mse"]))
        for part in (rows, [row for row in rows if row["form"] == forms[0].name])
    )
    linear = min(base["ridge"], key=lambda row: row["valid_mse"])
    show(rows, base)
    same = next((row for row in base["ridge"] if row["order"] == best["k"]), linear)
    rival = min(linear, same, key=lambda row: row["test_mse"])
    target = expectation(best, alone, rival)
    return {
        "curves": curves,
        "targets": [target],
        "results": {
            "names": recording.names,
            "rate": recording.rate,
            "horizons": config.horizons,
            "rows": rows,
            "baselines": base,
            "chosen": best["name"],
            "chosen_alone": alone["name"],
            "chosen_ridge": rival["order"],
            "verdict": "better" if target["reached"] else "no better",
        },
    }


def expectation(best: dict[str, Any], alone: dict[str, Any], rival: dict[str, Any]) -> targets.Row:
    """Compare the best network by validation with a ridge.

    The ratio is 1 if a network adds nothing to its ridge.
    """
    against, by_itself = rival["test_mse"], targets.median(alone["test_mse"])
    return targets.expect(
        f"{best['name']} (chosen on validation): test MSE relative to ridge AR",
        [mse / against for mse in best["test_mse"]],
        at_most=0.999,
        of=targets.largest,
        because=f"ridge AR({rival['order']}) of all nine channels has {against:.4f}; "
        f"{alone['name']}, has {by_itself:.4f}",
        otherwise=f"The network has {targets.median(best['test_mse']):.4f} and the linear forecast "
        f"{against:.4f} on the last "
        "11,040 steps; the training part has too few beats for a network.",
    )


def show(rows: list[dict[str, Any]], base: dict[str, Any]) -> None:
    """Print the tables of networks and baselines."""
    table(
        "nine channels, four horizons, equal training seconds (medians over seeds)",
        ("estimator", "updates", "bytes per update", "valid MSE", "test MSE"),
        [
            (
                row["name"],
                str(int(targets.median(row["updates"]))),
                human_bytes(row["temp_bytes"]),
                f"{targets.median(row['valid_mse']):.4f}",
                f"{targets.median(row['test_mse']):.4f}",
            )
            for row in rows
        ],
    )
    linear = [
        (
            f"ridge AR({r['order']}), {r['lags']} lags",
            f"{r['valid_mse']:.4f}",
            f"{r['test_mse']:.4f}",
        )
        for r in base["ridge"]
    ]
    plain = [(name, "", f"{row['test_mse']:.4f}") for name, row in base["plain"].items()]
    table("without a network", ("forecast", "valid MSE", "test MSE"), linear + plain)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the error by k, by horizon and by channel."""
    ecg_figure.draw(data, folder)


if __name__ == "__main__":
    program.run(__file__)
