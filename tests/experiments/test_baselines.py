"""Tests of the forecasts without a network."""

import numpy as np
import pytest

from experiments.support.common.baselines import persistence, ridge_ar
from tbptt.data import DataUnavailable, ppg, standardise


def noise(T: int = 9000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(T, 2))


def test_persistence_on_an_example() -> None:
    values = np.array([[9.0], [0.0], [1.0], [3.0], [6.0], [99.0]])
    # Origins 1, 2 with targets 3, 4: neither step 0 nor step 5 counts.
    assert persistence(values, 0, 2, 1, 5) == ((3 - 0) ** 2 + (6 - 1) ** 2) / 2


def test_a_sine_is_forecast_exactly_by_two_samples() -> None:
    values = 3.0 + np.sin(0.1 * np.arange(9000.0))[:, None]
    assert ridge_ar(values, 0, 2, 32, 6000, 7000, 9000, ridge=0.0) < 1e-18
    assert persistence(values, 0, 32, 7000, 9000) > 1.0


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("horizon", [1, 5])
def test_against_one_dense_least_squares(horizon: int, ridge: float) -> None:
    """The same forecast with one row per origin, and the ridge as extra rows."""
    values, order, train_end, start, end = noise() + 1.0, 3, 5000, 5500, 8800
    values[3:, 1] += 0.8 * values[:-3, 1]
    x = values[:, 1]

    def rows(origins: range) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[*x[t - order + 1 : t + 1], 1.0] for t in origins]), np.array(
            [x[t + horizon] for t in origins]
        )

    features, targets = rows(range(order - 1, train_end - horizon))
    extra = np.sqrt(ridge * len(targets)) * np.eye(order, order + 1)
    weights = np.linalg.lstsq(np.vstack([features, extra]), np.append(targets, np.zeros(order)))[0]
    features, targets = rows(range(start, end - horizon))
    want = np.mean((targets - features @ weights) ** 2)
    np.testing.assert_allclose(
        ridge_ar(values, 1, order, horizon, train_end, start, end, ridge), want, rtol=1e-10
    )


def test_only_the_two_parts_are_used() -> None:
    values = noise(3000)
    before = ridge_ar(values, 0, 8, 4, 1000, 1500, 2500)
    poisoned = values.copy()
    # 1493 is the oldest sample of the first origin.
    poisoned[1000:1493, 0] = poisoned[2500:, 0] = poisoned[:, 1] = np.nan
    assert ridge_ar(poisoned, 0, 8, 4, 1000, 1500, 2500) == before
    assert persistence(poisoned, 0, 4, 1500, 2500) == persistence(values, 0, 4, 1500, 2500)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 2}, "target must be a column of values, 0 .. 1; got 2"),
        ({"horizon": 0}, "got horizon=0"),
        ({"order": 0}, "order=0"),
        ({"test_end": 9001}, "the test part must lie in the 9000 steps"),
        ({"test_end": 7004}, "be longer than the horizon"),
        ({"train_end": 7001}, "end before the test part starts; got train_end=7001"),
        ({"train_end": 5}, "must have order .* steps"),
        ({"train_end": 0}, "must have order .* steps"),
        ({"ridge": -1.0}, "ridge must be at least 0; got -1.0"),
    ],
)
def test_faults(change: dict, message: str) -> None:
    arguments = {
        "target": 0,
        "order": 8,
        "horizon": 4,
        "train_end": 6000,
        "test_start": 7000,
        "test_end": 9000,
    }
    with pytest.raises(ValueError, match=message):
        ridge_ar(noise(), **(arguments | change))


@pytest.fixture(scope="module")
def pulse() -> np.ndarray:
    try:
        recording = ppg(2)
    except DataUnavailable as error:
        pytest.skip(str(error))
    assert recording.values.shape == (277_548, 2) and recording.rate == 128.0
    clipped = np.isin(recording.values[:, 0], (0, 2241)).mean()
    assert 0.002 < clipped < 0.0025
    return standardise(recording.values, 180_000)[0]


@pytest.mark.exhaustive
def test_the_scores_on_the_pulse_recording(pulse: np.ndarray) -> None:
    """The scores that all experiments on `ppg` quote."""
    part = (200_000, len(pulse))
    got = [persistence(pulse, 0, 32, *part)] + [
        ridge_ar(pulse, 0, order, 32, 180_000, *part) for order in (16, 64, 256)
    ]
    np.testing.assert_allclose(got, [1.2083, 0.4071, 0.3489, 0.1567], atol=6e-5)
