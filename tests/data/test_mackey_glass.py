"""The Mackey-Glass series agrees with another integrator and with published statistics."""

import importlib
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from tbptt.data import mackey_glass

integrate = importlib.import_module("tbptt.data.datasets.recordings").integrate


def method_of_steps(history: float, units: int, tau: float) -> np.ndarray:
    """Integrate one delay interval at a time.

    Within an interval, the delayed value is a known function of time, so the equation is an ODE.
    """
    past: Callable[[float], float] = lambda t: history  # noqa: E731
    samples, x, begin = [history], history, 0.0
    while len(samples) <= units:

        def slope(t: float, x: np.ndarray, past=past) -> np.ndarray:
            delayed = past(t - tau)
            return 0.2 * delayed / (1 + delayed**10) - 0.1 * x

        segment = solve_ivp(
            slope,
            (begin, begin + tau),
            [x],
            method="DOP853",
            rtol=1e-11,
            atol=1e-12,
            max_step=0.25,
            dense_output=True,
        )
        assert segment.success and segment.sol is not None
        samples += [
            float(segment.sol(t)[0]) for t in range(len(samples), int(begin + tau + 1e-9) + 1)
        ]
        begin, x = begin + tau, float(segment.y[0, -1])
        past = lambda t, sol=segment.sol: float(sol(t)[0])  # noqa: E731
    return np.array(samples[: units + 1])


@pytest.mark.parametrize(("history", "tau"), [(1.2, 17.0), (0.9, 30.0)])
def test_agrees_with_an_independent_integration(history: float, tau: float) -> None:
    want = method_of_steps(history, 100, tau)
    got = integrate(history, 101, tau)
    assert np.ptp(want) > 0.3, "a constant series would agree trivially"
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_closed_form_values() -> None:
    """Compare with the exact solution over the first delay.

    With a constant past the equation is linear: x(t) = p + (x0 - p) exp(-t / 10) with
    p = 2 x0 / (1 + x0^10).
    """
    x0, t = 1.2, np.arange(17)
    p = 2 * x0 / (1 + x0**10)
    np.testing.assert_allclose(integrate(x0, 17), p + (x0 - p) * np.exp(-t / 10), rtol=1e-8)
    np.testing.assert_allclose(integrate(1.0, 50), 1.0, rtol=1e-12)  # the fixed point


def test_the_recording() -> None:
    recording = mackey_glass(3000, seed=3)
    assert (
        recording.values.shape == (3000, 1) and recording.names == ("x",) and recording.rate == 1.0
    )
    assert "seed=3" in recording.source
    # Published statistics at tau = 17: within 0.4 .. 1.4, mean 0.93, standard deviation 0.22.
    assert recording.values.min() > 0.4 and recording.values.max() < 1.4
    assert abs(recording.values.mean() - 0.93) < 0.02 and abs(recording.values.std() - 0.226) < 0.01


def test_seed_and_washout() -> None:
    first, again, other = (mackey_glass(50, seed=seed, washout=100).values for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05
    whole = mackey_glass(60, seed=1, washout=0).values
    np.testing.assert_array_equal(mackey_glass(40, seed=1, washout=20).values, whole[20:])
    assert 0.5 <= whole[0, 0] <= 1.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"washout": -1}, "got washout=-1"),
        ({"tau": 0.0}, "tau must be a positive multiple of 0.1 time units.*got tau=0.0"),
        ({"tau": -17.0}, "got tau=-17.0"),
        ({"tau": 17.03}, "got tau=17.03"),
        ({"tau": float("nan")}, "got tau=nan"),
    ],
)
def test_argument_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mackey_glass(**arguments)
