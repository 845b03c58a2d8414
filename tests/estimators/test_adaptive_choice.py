"""The choice of a window: closed forms, phi without a decay, and errors."""

import jax
import numpy as np
import pytest
from scipy.special import stdtrit

import tbptt
from tbptt.estimators.adaptive.decay import Decay, choose
from tests.support.estimating import CELLS, make, own_loss, run

ALL = tuple(range(1, 101))
choose_window = jax.jit(
    tbptt.choose_window, static_argnums=(1, 2, 3), static_argnames=("k1", "level")
)


def geometric(a, lags):
    return a ** np.arange(1, lags + 1.0)


def picked(choice, windows):
    return windows[int(choice.chosen)]


def fast_then_slow(lags):
    """phi_1 = 1, halved at every lag up to 8, then a slow decay by 0.95."""
    k = np.arange(1, lags + 1)
    return np.where(k <= 8, 0.5 ** (k - 1.0), 0.5**7.0 * 0.95 ** (k - 8.0))


def test_two_time_scales_where_a_fit_of_all_lags_is_wrong():
    lags, delta = 10, 0.1
    slow = 0.5**7 / (1 - 0.95)  # what lags 8, 9, ... sum to, without end
    left = lambda K: sum(0.5 ** (k - 1) for k in range(K, 8)) + slow  # noqa: E731
    total = left(1)
    assert [K for K in range(2, 9) if left(K) / (total - left(K)) < delta][0] == 7
    slope, first = np.polyfit(np.arange(1, lags + 1), np.log(fast_then_slow(lags)), 1)
    fitted = lambda K: np.exp(first + slope * K) / (1 - np.exp(slope))  # noqa: E731
    assert [K for K in range(1, 9) if 0 < fitted(K) / (total - fitted(K)) < delta][
        0
    ] == 5  # all lags in one line
    choice = choose_window(fast_then_slow(lags), ALL, delta, 8)
    assert picked(choice, ALL) == 7 and choice.enough and choice.decays
    np.testing.assert_allclose(choice.beta, 0.95, rtol=1e-12)
    np.testing.assert_allclose(choice.absolute[:8], [left(K) for K in range(1, 9)], rtol=1e-10)
    scaled = choose_window(fast_then_slow(lags), ALL, delta, 8, scale=total)
    np.testing.assert_allclose(scaled.relative[6], left(7) / (total - left(7)), rtol=1e-10)
    assert picked(scaled, ALL) == 7
    assert (
        picked(choose_window(fast_then_slow(lags), ALL, delta, 1), ALL) >= 7
    )  # the line is raised above all phi


def test_growing_gradients_choose_the_largest_window_and_report_it():
    for lags, windows in [(50, (1, 5, 20))]:
        choice = choose_window(geometric(1.05, lags), windows, 0.9, 25)
        assert picked(choice, windows) == windows[-1] and not choice.decays and not choice.enough
        np.testing.assert_allclose(choice.beta, 1.05, rtol=1e-12)
        assert np.isinf(choice.absolute).all() and np.isinf(choice.relative).all()
    late = np.where(np.arange(50) < 25, 0.5 ** np.arange(50.0), 0.5**25 * 1.01 ** np.arange(50.0))
    assert not choose_window(late, windows, 0.9, 25).decays  # tiny, but it grows
    assert not choose_window(np.ones(50), windows, 0.9, 25).decays  # beta = 1


@pytest.mark.exhaustive
def test_outside_jit_a_choice_without_a_bound_warns():
    """1.05^k; a decay too slow for every window; and one that is enough, without a warning."""
    with pytest.warns(
        UserWarning, match=r"do not surely decay.*beta 1\.05.*no bound.*k2 = 20 is the largest"
    ):
        tbptt.choose_window(geometric(1.05, 50), (1, 5, 20), 0.9, 25)
    with pytest.warns(
        UserWarning,
        match=r"no window is long enough: k2 = 20.*relative bias of at most 4\.8, not below.*0\.5",
    ):
        tbptt.choose_window(geometric(0.99, 50), (1, 5, 20), 0.5, 25, scale=0.99 / 0.01)
    choice = tbptt.choose_window(geometric(0.5, 50), (1, 5, 20), 0.5, 25)
    assert tbptt.estimators.explain_choice(choice, (1, 5, 20), 0.5).startswith(
        "k2 = 5: its relative bias is at most 0.067, below"
    )


@pytest.mark.parametrize("a, k1", [(0.3, 1), (0.9, 4), (0.99, 1)])
def test_a_geometric_decay_in_closed_form(a, k1):
    lags, windows = 40, (4, 5, 9, 16, 33, 60, 200)
    choice = choose_window(geometric(a, lags), windows, 0.2, 5, k1=k1, scale=a / (1 - a))
    R = lambda n: a**n / (1 - a)  # noqa: E731
    want = np.array([np.mean([R(k2 - k1 + i) for i in range(1, k1 + 1)]) for k2 in windows])
    np.testing.assert_allclose(choice.absolute, want, rtol=1e-9)
    relative = np.where(want < a / (1 - a), want / (a / (1 - a) - want), np.inf)
    np.testing.assert_allclose(choice.relative, relative, rtol=1e-8)
    np.testing.assert_allclose([choice.beta, *choice.interval], a, rtol=1e-10)
    good = [k2 for k2, r in zip(windows, relative, strict=True) if r < 0.2]
    assert picked(choice, windows) == (good[0] if good else windows[-1]) and bool(
        choice.enough
    ) == bool(good)
    assert choice.decays


def test_a_window_shorter_than_the_stride_has_no_bound():
    choice = choose_window(geometric(0.1, 10), (2, 3, 4, 8), 0.5, 3, k1=4)
    assert np.isinf(choice.absolute[:2]).all() and np.isfinite(choice.absolute[2:]).all()
    assert picked(choice, (2, 3, 4, 8)) >= 4


def test_the_interval_is_students_and_its_upper_end_is_used():
    rng, tau, lags = np.random.default_rng(0), 6, 14
    k = np.arange(1, lags + 1.0)
    phi = 0.9**k * np.exp(0.1 * rng.standard_normal(lags))
    x, y = k[tau - 1 :] - np.mean(k[tau - 1 :]), np.log(phi[tau - 1 :])
    slope = x @ y / (x @ x)
    residuals = y - np.mean(y) - slope * x
    error = np.sqrt(residuals @ residuals / (lags - tau - 1) / (x @ x))
    half = stdtrit(lags - tau - 1, 0.5 + 0.9 / 2) * error
    choice = choose_window(phi, (lags, 30), 0.9, tau, level=0.9)
    np.testing.assert_allclose(choice.beta, np.exp(slope), rtol=1e-12)
    np.testing.assert_allclose(choice.interval, np.exp([slope - half, slope + half]), rtol=1e-12)
    high = float(choice.interval[1])
    anchor = np.max((phi / high ** (k - tau))[tau - 1 :])
    np.testing.assert_allclose(
        choice.absolute, [anchor * high ** (n - tau) / (1 - high) for n in (lags, 30)], rtol=1e-10
    )
    noisy = 0.99**k * np.exp(0.5 * rng.standard_normal(lags))
    wide = choose_window(noisy, (2, 30), 0.9, tau)
    assert (
        wide.beta < 1 < wide.interval[1] and not wide.decays and wide.chosen == 1
    )  # beta < 1 is not enough
    absolute = choose_window(phi, tuple(range(1, lags + 1)), 0.5, tau).absolute
    assert (
        absolute >= np.cumsum(phi[::-1])[::-1] * (1 - 1e-12)
    ).all()  # never below what was measured


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "phi, decays, chosen",
    [
        (np.zeros(8), True, 0),  # the loss does not depend on the past
        ([1.0, 0.5, 0, 0, 0, 0, 0, 0], True, 1),  # it depends on two steps only: 0.5 / (1.5 - 0.5)
        (
            [1.0, 1, 1, 1, 1, 1, 1, 0],
            True,
            3,
        ),  # the last phi is 0: nothing beyond the measured lags
        ([1.0, 1, 1, 0, 0, 0, 0, 1e-3], False, 3),  # fewer than three points to fit
        ([1.0, 0.1, np.nan, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], False, 3),
        ([np.inf, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], False, 3),
        ([1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, -1e-7], False, 3),
        ([1e30, 1e25, 1e20, 1e15, 1e10, 1e5, 1.0, 1e-5], True, 1),
        ([1e-5, 1e-10, 1e-15, 1e-20, 1e-25, 1e-30, 1e-35, 0], True, 1),  # underflow
        ([1e38, 1e38, 1e37, 1e36, 1e35, 1e34, 1e33, 1e32], True, 2),  # in float32 the sum overflows
    ],
)
def test_nothing_is_undefined(phi, decays, chosen, dtype):
    windows = (1, 2, 3, 8)
    choice = choose_window(np.asarray(phi, dtype), windows, 0.6, 3)
    assert bool(choice.decays) is decays and int(choice.chosen) == chosen
    assert not np.isnan(choice.absolute).any() and not np.isnan(choice.relative).any()
    assert not np.isnan(choice.interval).any() and choice.absolute.dtype == dtype
    assert np.isinf(choice.absolute).all() != decays
    assert bool(choice.enough) == bool(choice.relative[chosen] < 0.6)


def test_the_scale_is_the_largest_gradient_norm_over_that_of_one_step():
    """M is the largest contribution of a step, in units of its phi: G = largest / M."""
    phi, windows, largest = geometric(0.7, 21), (2, 5, 10, 20), np.float64(9.0)
    contributions = phi[:-1] * np.linspace(0.1, 0.8, 20)
    decay = Decay(phi, contributions, largest, np.int32(1), np.bool_(False))
    got = jax.jit(choose, static_argnums=(1, 2, 3, 4, 5))(decay, windows, 0.1, 10, 2, 0.95)
    wanted = choose_window(phi, windows, 0.1, 10, k1=2, level=0.95, scale=largest / 0.8)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert np.all(np.isfinite(got.relative)) and got.relative[0] > 10 * got.relative[-1] > 0


def test_an_unusable_scale_chooses_the_largest():
    for scale, chosen in [
        (np.nan, 2),
        (0.0, 2),
        (-1.0, 2),
        (np.inf, 0),
    ]:  # inf: no step contributes to the gradient
        assert choose_window(geometric(0.5, 10), (1, 4, 8), 0.5, 4, scale=scale).chosen == chosen


def test_errors_of_the_choice():
    plain = getattr(tbptt.choose_window, "__wrapped__", tbptt.choose_window)
    phi = geometric(0.5, 10)
    for args, error, match in [
        ((phi, (), 0.5, 3), ValueError, "at least one"),
        ((phi, (4, 4), 0.5, 3), ValueError, "strictly increasing"),
        ((phi, (0, 4), 0.5, 3), ValueError, r"windows\[0\]"),
        *(
            ((phi, (1, 4), delta, 3), ValueError, "delta must be")
            for delta in (0.0, 1.0, -0.1, 1.5, np.nan)
        ),
        ((phi, (1, 4), 0.5, 9), ValueError, "tau=9, lags=10"),
        ((phi, (1, 4), 0.5, 0), ValueError, "tau must be at least 1"),
        ((phi[None], (1, 4), 0.5, 3), ValueError, r"\(1, 10\)"),
    ]:
        with pytest.raises(error, match=match):
            plain(*args)
    with pytest.raises(ValueError, match="level"):
        plain(phi, (1, 4), 0.5, 3, level=1.0)
    adaptive = getattr(tbptt.adaptive_bptt, "__wrapped__", tbptt.adaptive_bptt)
    for kwargs, match in [
        (dict(lags=3, tau=2), "tau=2, lags=3"),
        (dict(smoothing=1.0), "smoothing"),
        (dict(every=0), "every"),
    ]:
        with pytest.raises(ValueError, match=match):
            adaptive(own_loss, 2, (2, 4), 0.5, **kwargs)
    _, params, carry, batch = make(CELLS["elman"])
    with pytest.raises(ValueError, match="T=12, k1=5"):
        run(tbptt.adaptive_bptt(make(CELLS["elman"])[0], 5, (5, 10), 0.5), params, carry, batch)
