"""forecast_pairs equals its loop, and standardise uses the training part only."""

import numpy as np
import pytest

from tbptt.data import forecast_pairs, standardise
from tbptt.data.streams.forecast import check_values


def test_standardise_uses_the_training_part_only() -> None:
    values = np.array([[1.0, 10.0], [3.0, 10.5], [100.0, -7.0]])
    scaled, scaling = standardise(values, 2)
    np.testing.assert_array_equal(scaling.mean, [2.0, 10.25])
    np.testing.assert_array_equal(scaling.scale, [1.0, 0.25])
    np.testing.assert_array_equal(scaled, [[-1.0, -1.0], [1.0, 1.0], [98.0, -69.0]])
    np.testing.assert_array_equal(scaled * scaling.scale + scaling.mean, values)
    assert standardise(values.astype(np.float32), 3)[0].dtype == np.float32


def test_standardise_errors() -> None:
    values = np.array([[1.0, 0.1], [3.0, 0.1], [5.0, 0.1], [7.0, 9.0]])
    with pytest.raises(
        ValueError, match=r"column 1 of values is constant \(0.1\).*its first 3 steps"
    ):
        standardise(values, 3)  # numpy's deviation of these three is 1e-17, not 0
    assert values[:3, 1].std() > 0
    for train_end in (0, -1):
        with pytest.raises(
            ValueError, match=f"train_end must be at least 1 step; got train_end={train_end}"
        ):
            standardise(values, train_end)
    with pytest.raises(ValueError, match="got train_end=5, T=4"):
        standardise(values, 5)
    with pytest.raises(TypeError):
        standardise(values, 2.0)  # pyright: ignore[reportArgumentType]
    values[2, 0] = np.nan
    with pytest.raises(ValueError, match="step 2, column 0 is nan"):
        standardise(values, 2)


def test_forecast_pairs_equals_the_loop_of_its_docstring() -> None:
    values, horizons = np.random.default_rng(0).normal(size=(20, 3)), (4, 1, 7)
    inputs, targets = forecast_pairs(values, 1, horizons)
    assert inputs.shape == (13, 3) and targets.shape == (13, 3)
    for t in range(13):
        np.testing.assert_array_equal(inputs[t], values[t])
        for i, horizon in enumerate(horizons):
            assert targets[t, i] == values[t + horizon, 1]


@pytest.mark.parametrize(
    ("target", "horizons", "error", "message"),
    [
        (0, (1, 0), ValueError, r"horizons\[1\] must be at least 1 step; got horizons\[1\]=0"),
        (0, (-3,), ValueError, r"horizons\[0\]=-3"),
        (0, (), ValueError, "at least one horizon, in steps; got \\(\\)"),
        (0, (1, 10), ValueError, r"max\(horizons\)=10, T=10 steps"),
        (2, (1,), ValueError, "target must be a column index of values, 0 .. 1; got target=2"),
        (-1, (1,), ValueError, "got target=-1"),
        (0, (1.5,), TypeError, "horizons"),
    ],
)
def test_forecast_pairs_errors(target: int, horizons, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        forecast_pairs(np.zeros((10, 2)), target, horizons)


def test_values_are_validated() -> None:
    values = np.zeros((5, 2))
    values[3, 1], values[4, 0] = np.inf, np.nan
    with pytest.raises(
        ValueError,
        match="values must be finite; step 3, column 1 is inf, one of 2 non-finite values",
    ):
        forecast_pairs(values, 0, (1,))
    for wrong in (np.zeros(5), np.zeros((5, 2), int), np.zeros((0, 2)), [[1.0]], None):
        with pytest.raises(
            ValueError, match=r"values must be a non-empty numpy array \[T, C\] of floats"
        ):
            check_values("values", wrong)
