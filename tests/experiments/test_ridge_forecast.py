"""The linear forecast of all columns by ridge regression."""

import numpy as np
import pytest

from experiments.support.common import linear_forecast
from experiments.support.common.baselines import ridge_ar


def test_one_column_at_all_lags_equals_ridge_ar():
    x = np.random.default_rng(0).normal(size=(3000, 1)).cumsum(0) % 3
    got = linear_forecast.ridge_forecast(
        x, range(6), (4,), (0.01,), 2000, (2000, 2400), (2400, 3000)
    )
    np.testing.assert_allclose(
        got.test, ridge_ar(x, 0, 6, 4, 2000, 2400, 3000, ridge=0.01), rtol=1e-10
    )
    np.testing.assert_allclose(
        got.valid, ridge_ar(x, 0, 6, 4, 2000, 2000, 2400, ridge=0.01), rtol=1e-10
    )


def test_every_column_is_forecast_from_all_columns_and_lags():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 2))
    x[5:, 1] = x[:-5, 0]  # column 1 repeats column 0 five steps later
    parts = 2000, (2000, 2400), (2400, 3000)
    mse = linear_forecast.ridge_forecast(x, (0, 3), (2, 5), (1e-9,), *parts).test
    assert mse[0, 1] < 1e-12 and mse[1, 1] < 1e-12, (
        "t + 2 - 5 = t - 3, and t + 5 - 5 = t: both are among the lags"
    )
    assert (
        mse[0, 0] > 0.8
        and linear_forecast.ridge_forecast(x, (0, 2), (2,), (1e-9,), *parts).test[0, 1] > 0.8
    )
    poisoned = x.copy()
    # Between validation and the oldest sample of the test part.
    poisoned[2400 - 3 - 5 - 200 : 2400 - 3] = 1e6
    parts = 2000, (2000, 2100), (2400, 3000)
    args = (0, 3), (2, 5), (1e-9,)
    np.testing.assert_array_equal(
        linear_forecast.ridge_forecast(x, *args, *parts).test,
        linear_forecast.ridge_forecast(poisoned, *args, *parts).test,
    )


def test_the_penalty_has_the_lowest_validation_error():
    x = np.random.default_rng(2).normal(size=(400, 3))  # pure noise: the largest penalty is best
    parts = 100, (100, 250), (250, 400)
    found = linear_forecast.ridge_forecast(x, range(8), (1,), (1e-6, 1e6, 1e-3), *parts)
    light = linear_forecast.ridge_forecast(x, range(8), (1,), (1e-6,), *parts)
    assert found.ridge == 1e6 and found.valid.mean() < light.valid.mean()


@pytest.mark.parametrize(("change", "message"), [
    ({"valid": (90, 250)}, "must begin after the training part's 100 steps"),
    ({"test": (250, 401)}, "test part must lie in the 400 steps"),
    ({"test": (250, 253)}, r"longer than the horizon 3; got 250 .. 253"),
    ({"train_end": 9}, "train part"),
    ({"ridges": ()}, "at least one penalty"),
])  # fmt: skip
def test_parts_out_of_range_are_refused(change, message):
    arguments = {
        "ridges": (0.1,),
        "train_end": 100,
        "valid": (100, 250),
        "test": (250, 400),
    } | change
    with pytest.raises(ValueError, match=message):
        linear_forecast.ridge_forecast(
            np.zeros((400, 1)) + np.arange(400)[:, None], range(8), (1, 3), **arguments
        )


def test_lags_are_evenly_spaced():
    assert linear_forecast.even_lags(5, 64) == [0, 1, 2, 3, 4]
    assert linear_forecast.even_lags(250, 3) == [0, 124, 249]
    with pytest.raises(ValueError, match="order=0"):
        linear_forecast.even_lags(0, 3)
