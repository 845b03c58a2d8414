"""The ECG experiment: targets, inputs, and the ridge regression that a network is added to."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from experiments import ecg
from experiments.support.common import linear_forecast
from experiments.support.common.forecasting import Model
from experiments.support.tasks import ecg_data


def test_all_channels_at_all_horizons_are_the_targets():
    scaled = np.arange(59_040.0)[:, None] + np.array([0.0, 0.5])
    # Persistence for the first channel at the first horizon.
    base = np.tile(scaled, (1, 2)) * [1, 0, 0, 0]
    batch = ecg_data.training_batch(scaled, scaled, base, (8, 64), 19)
    assert batch.inputs.shape == (2500, 16, 2) and batch.targets.shape == (2500, 16, 4)
    np.testing.assert_array_equal(batch.targets[..., 0], 8)
    ahead = batch.targets[..., 1:] - batch.inputs[..., :1]
    np.testing.assert_array_equal(ahead, np.broadcast_to([8.5, 64, 64.5], (2500, 16, 3)))
    assert (
        float(batch.weights.sum()) == 40_000 - 64 - 19 and float(batch.weights[-64:, -1].sum()) == 0
    )
    assert float(batch.weights[:19, 0].sum()) == 0


def test_the_inputs_are_the_sample_and_its_standardised_differences():
    x = np.cumsum(np.random.default_rng(0).normal(size=(50_000, 2)), axis=0)
    inputs = ecg_data.with_differences(x, 3)
    assert inputs.shape == (50_000, 8)
    np.testing.assert_allclose(inputs[:40_000].mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(inputs[:40_000].std(0), 1, rtol=1e-10)
    change = x[97] - x[100]  # three steps back, the last two columns
    every = x[np.maximum(np.arange(40_000) - 3, 0)] - x[:40_000]
    np.testing.assert_allclose(
        inputs[100, -2:], (change - every.mean(0)) / every.std(0), rtol=1e-10
    )
    poisoned = x.copy()
    poisoned[101:] = 0.0  # later samples have an effect on the scale only
    later = ecg_data.with_differences(np.vstack([poisoned[:101], poisoned[:101]]), 3)
    assert np.corrcoef(later[4:101, -1], inputs[4:101, -1])[0, 1] > 1 - 1e-9


def test_a_network_that_adds_nothing_to_its_ridge_is_not_better():
    best = {"name": "LSTM on ridge AR(20), TBPTT(20, 20)", "test_mse": [0.77, 0.76, 0.78]}
    alone = {"name": "LSTM alone, TBPTT(50, 50)", "test_mse": [0.9]}
    rival = {"order": 20, "test_mse": 0.7}
    for errors, reached in (
        ([0.69, 0.6, 0.65], True),
        ([0.69, 0.6, 0.7], False),
        ([0.6, 0.6, 0.71], False),
    ):
        row = ecg.expectation(best | {"test_mse": errors}, alone, rival)
        assert (
            row["reached"] == reached and "LSTM alone, TBPTT(50, 50), has 0.9000" in row["expected"]
        )


def test_the_parameters_with_the_lowest_validation_error_are_kept(key):
    scaled = np.random.default_rng(0).normal(size=(48_500, 2)) + 1.0
    model, base = Model(tbptt.MinGRU(2, 3), nn.Dense(4)), np.full((48_500, 4), 0.5)
    params = jax.tree.map(jnp.zeros_like, tbptt.init_params(key, model.cell, model.readout))
    keep = ecg_data.make_keep(model, scaled, scaled, base, (8, 64))

    def state(bias: float):
        readout = {"params": {**params.readout["params"], "bias": jnp.full(4, bias)}}
        return SimpleNamespace(params=params._replace(readout=readout))

    kept = None
    for bias in (0.1, 0.5, 0.9):  # 0.5 plus the base is the mean, 1
        kept = keep(kept, state(bias))
    assert kept is not None and float(kept[1].readout["params"]["bias"][0]) == np.float32(0.5)
    valid, _ = ecg_data.make_score(model, scaled, scaled, base, (8, 64))(kept[1])
    assert kept[0] == pytest.approx(valid.mean(), rel=1e-3) == pytest.approx(1.0, abs=0.05)


def test_the_predictions_of_a_ridge_have_its_test_error():
    x = np.random.default_rng(1).normal(size=(3000, 2))
    x[4:, 0] += 0.9 * x[:-4, 1]
    lags, parts = (0, 3), (2000, (2000, 2400), (2400, 3000))
    found = linear_forecast.ridge_forecast(x, lags, (4,), (1e-6,), *parts)
    ahead = linear_forecast.predictions(x, lags, found.weights)
    assert ahead.shape == (3000, 2) and not ahead[:3].any() and ahead[3:].all()
    np.testing.assert_allclose(
        np.mean((x[2404:3000] - ahead[2400:2996]) ** 2, axis=0), found.test[0], rtol=1e-12
    )


def test_network_and_ridge_are_scored_on_the_same_origins(key):
    scaled = np.random.default_rng(0).normal(size=(48_500, 2))
    model = Model(tbptt.MinGRU(2, 3), nn.Dense(4))
    params = tbptt.init_params(key, model.cell, model.readout)
    params = jax.tree.map(jnp.zeros_like, params)  # forecasts 0
    valid, test = ecg_data.make_score(model, scaled, scaled, np.zeros((48_500, 4)), (8, 64))(params)
    ridge = linear_forecast.ridge_forecast(
        scaled, (0,), (8, 64), (1e12,), 40_000, (40_000, 48_000), (48_000, 48_500)
    )
    np.testing.assert_allclose(valid, ridge.valid, rtol=1e-3)
    np.testing.assert_allclose(test, ridge.test, rtol=2e-2)  # the ridge knows the mean
    assert valid.shape == test.shape == (2, 2)
