"""Tests of the warnings about gradients: none in healthy training, one per episode otherwise."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from experiments.support.train.advice import advice
from tbptt import Metrics
from tbptt.fit import health
from tbptt.fit.log import RunLog
from tbptt.fit.metrics_file import read_rows
from tests.support.logged_updates import N, metrics, said, silent


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(size=n))


def series(losses, norms) -> list[tuple[float, float, bool]]:
    return [(float(a), float(b), not np.isfinite(a + b)) for a, b in np.broadcast(losses, norms)]


T = 600
RAMP = np.clip((np.arange(T) - 300) / 60, 0, 1)
HEALTHY = {
    "noisy": series(noise(T), noise(T, 1)),
    "a plateau, then learning": series(0.1**RAMP, 0.02 ** (1 - RAMP) * noise(T)),
    "solved, without noise": series(0.97 ** np.arange(T), 0.97 ** (np.arange(T) / 2)),
    "solved in one leap": series(
        np.where(np.arange(T) < 300, 1.0, 1e-9), np.where(np.arange(T) < 300, 1.0, 1e-5)
    ),
    "spikes that clipping takes": series(1.0, np.where(np.arange(T) % 50 == 49, 60.0, 1.0)),
    "chunks without a loss": series(
        np.where(np.arange(T) % 90 < 10, 0.0, 1.0), np.where(np.arange(T) % 90 < 10, 0.0, 1.0)
    ),
    "a stray zero": series(1.0, np.where(np.arange(T) % 100 == 50, 0.0, 1.0)),
}
SICK = {
    "one leap": (series(1.0, np.where(np.arange(T) == 400, 1000.0, 1.0)), [(400, "exploded")]),
    "one leap in noise": (
        series(noise(T), np.where(np.arange(T) == 400, 1000.0, noise(T, 1))),
        [(400, "exploded")],
    ),
    "a blow-up": (
        series(1.0, np.where(np.arange(T) > 100, 1.2 ** (np.arange(T) - 100.0), 1.0)[:400]),
        [(126, "exploded")],
    ),
    "slow growth": (series(1.0, 1.02 ** np.arange(T)), [(475, "exploded")]),
    "never in range": (series(1.0, np.full(T, 1e25)), [(0, "exploded")]),
    "vanished": (
        series(np.sqrt(noise(T)), np.where(np.arange(T) < 300, 1.0, 1e-5) * noise(T, 1)),
        [(304, "vanished")],
    ),
    "slowly to rounding": (series(1.0, 0.95 ** np.arange(T)), [(325, "vanished")]),
    "dead from the start": (series(2.3, np.zeros(T)), [(4, "vanished")]),
    "NaN, for ever": (
        series(1.0, np.where(np.arange(T) < 200, 1.0, np.nan)),
        [(200, "non_finite")],
    ),
    "twice": (
        series(1.0, np.where((np.arange(T) == 200) | (np.arange(T) == 400), np.inf, 1.0)),
        [(200, "non_finite"), (400, "non_finite")],
    ),
    "exploded, then NaN": (
        series(np.where(np.arange(T) > 205, np.nan, 1.0), np.where(np.arange(T) >= 200, 1e4, 1.0)),
        [(200, "exploded"), (206, "non_finite")],
    ),
}


def findings(updates):
    """Check a series of (loss, norm, non_finite); return (index, finding) of each episode."""
    history, found = health.History(), []
    for index, update in enumerate(updates):
        history, finding = health.check(history, *update)
        found += [] if finding is None else [(index, finding)]
    return found


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_training_is_silent(name):
    assert findings(HEALTHY[name]) == []


@pytest.mark.parametrize("name", SICK)
def test_each_episode_is_reported_once_at_its_start(name):
    updates, expected = SICK[name]
    assert [(index, finding.kind) for index, finding in findings(updates)] == expected


def test_advice_has_the_numbers_of_the_run():
    text = advice("exploded", {"lr": 3e-3, "clip": 1.0, "k2": 100, "cell": "elman"})
    assert "--lr 0.001 (now 0.003)" in text and "--clip 0.25 (now 1)" in text
    assert "--k2 50 (now 100)" in text and "lstm" in text
    assert "--clip 1," in advice("exploded", {"clip": None, "cell": "lstm"})
    assert "--k2 100 (now 50)" in advice("vanished", {"k2": 50})
    assert "NaN" in advice("non_finite", {}) and "NaN" in health.advice("non_finite")


def test_a_warning_is_printed_and_written_once(tmp_path):
    console = silent()
    lower = functools.partial(advice, settings={"lr": 0.3})
    with RunLog(tmp_path, every=25, advice=lower, console=console) as log:
        log.update(metrics(0, 60))
        log.update(Metrics(jnp.float32(1), jnp.float32(1e6), None, jnp.bool_(False), None))
        log.update(metrics(61, N))
    assert said(console).count(
        "warning: update 61: gradient norm 1e+06 is"
    ) == 1 and "--lr 0.1" in said(console)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["what"]) for row in rows if row["kind"] == "warning"] == [
        (61, "exploded")
    ]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    # The history is restored from the lines.
    with RunLog(tmp_path, start=N, console=console) as log:
        log.update(Metrics(jnp.float32(1), jnp.float32(1e6), None, jnp.bool_(False), None))
    assert "warning: update 131" not in said(console)  # four lines are too few for a median


def training(
    cell, lr: float, clip: float, key, updates: int = 240
) -> list[tuple[float, float, bool]]:
    values = tbptt.data.mackey_glass(updates * 25 + 1, seed=0).values
    scaled, _ = tbptt.data.standardise(values, len(values))
    batch = tbptt.Batch(jnp.asarray(scaled[:-1, None]), jnp.asarray(scaled[1:, None]))
    readout = nn.Dense(1)
    estimator = tbptt.truncated_bptt(
        tbptt.sequence_loss(cell, readout, tbptt.squared_error), 25, 25
    )
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(lr))
    params = tbptt.init_params(key, cell, readout)
    state = tbptt.init_state(estimator, optimizer, params, cell.initial_carry((1,)), batch)
    _, m = tbptt.make_train_epoch(estimator, optimizer, 25)(state, batch)
    return list(
        zip(*(np.asarray(x).tolist() for x in (m.loss, m.grad_norm, m.non_finite)), strict=True)
    )


@pytest.mark.exhaustive
def test_real_training_gives_a_warning_only_if_it_diverges(key):
    assert findings(training(tbptt.GRU(1, 8), 0.05, 1.0, key)) == []
    found = findings(training(tbptt.DiagonalLinear(1, 8), 300.0, 1e30, key))
    assert found and found[0][1].kind in ("exploded", "non_finite")
