"""Lyapunov spectra against eigenvalues, determinants and theory; horizons against closed forms."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.diagnostics import (
    lag_profile,
    lyapunov_spectrum,
    measured_horizon,
    memory_horizon,
    step_jacobians,
)
from tests.support.counting_cell import CountingElman, total
from tests.support.sequences import cell_params, zero_carry

STACK = tbptt.Stack((tbptt.LSTM(2, 2), tbptt.Elman(2, 3)))
_spectrum = jax.jit(lyapunov_spectrum, static_argnums=0, static_argnames=("count", "warmup"))
horizon_of, predicted = (
    jax.jit(measured_horizon, static_argnums=1),
    jax.jit(memory_horizon, static_argnums=1),
)


def spectrum(cell, params, carry, xs, **given):
    """Return the spectrum as numpy arrays, from one program for all params of a cell."""
    return jax.tree.map(np.asarray, _spectrum(cell, params, carry, xs, **given))


def drawn(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape)


def linear(w):
    """Return a linear Elman cell whose Jacobian is w^T at every step."""
    cell = tbptt.Elman(2, w.shape[0], activation=jax.nn.identity, dtype=w.dtype)
    return cell, cell_params(cell)._replace(w_h=w)


def test_a_linear_network_has_the_logs_of_its_eigenvalues_for_any_inputs():
    v = np.random.default_rng(0).normal(size=(5, 5))
    rates = np.log([1.2, 0.9, 0.6, 0.4, 0.2])
    cell, params = linear(
        v @ np.diag(np.exp(rates)) @ np.linalg.inv(v)
    )  # non-normal: QR needs a warm-up
    xs = drawn(200, 2)
    got = spectrum(cell, params, zero_carry(cell), xs, warmup=150)
    np.testing.assert_allclose(got.exponents, rates, atol=1e-12)
    np.testing.assert_allclose(got.standard_error, 0, atol=1e-12)
    assert got.running.shape == (50, 5)
    np.testing.assert_array_equal(got.running[-1], got.exponents)
    two = spectrum(cell, params, zero_carry(cell), xs, count=2, warmup=150)
    np.testing.assert_allclose(two.exponents, rates[:2], atol=1e-12)
    assert np.isnan(two.log_det_mean)  # needs all exponents


def test_exponents_of_an_unsorted_diagonal_network_are_sorted():
    cell, params = linear(np.diag([0.2, 0.9, -0.5, 0.1, 0.3]))
    got = spectrum(cell, params, zero_carry(cell), np.zeros((200, 2)), warmup=150)
    np.testing.assert_allclose(got.exponents, np.log([0.9, 0.5, 0.3, 0.2, 0.1]), atol=1e-12)


def test_a_pair_of_complex_eigenvalues_converges_as_one_over_the_steps():
    """Check the docstring: each of the two errs by about half a nat / S; their sum does not."""
    angle = 0.7
    block = 0.9 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    skew = np.random.default_rng(0).normal(size=(4, 4))
    w = (
        skew
        @ np.block([[block, np.zeros((2, 2))], [np.zeros((2, 2)), np.diag([0.5, 0.2])]])
        @ np.linalg.inv(skew)
    )
    cell, params = linear(w)
    got = spectrum(cell, params, zero_carry(cell), np.zeros((4300, 2)), warmup=300)
    for steps in (100, 1000, 4000):
        errors = got.running[steps - 1] - np.log([0.9, 0.9, 0.5, 0.2])
        assert 0.1 / steps < np.max(np.abs(errors[:2])) < 0.7 / steps
        np.testing.assert_allclose([errors[0] + errors[1], *errors[2:]], 0, atol=1e-12)


def test_an_orthogonal_network_has_zero_exponents():
    cell, params = linear(np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0])
    got = spectrum(cell, params, zero_carry(cell), drawn(200, 2), warmup=150)
    np.testing.assert_allclose(got.exponents, np.zeros(5), atol=1e-14)
    np.testing.assert_allclose(got.running, np.zeros((50, 5)), atol=1e-14)


def test_exponents_sum_to_the_mean_log_determinant():
    @jax.jit
    def all_of(*given):
        return (
            lyapunov_spectrum(STACK, *given, warmup=10),
            lyapunov_spectrum(STACK, *given, count=1, warmup=10),
            step_jacobians(STACK, *given),
        )

    got, first, jacobians = jax.tree.map(
        np.asarray, all_of(cell_params(STACK), zero_carry(STACK), drawn(60, 2))
    )
    want = np.mean(np.linalg.slogdet(jacobians[10:])[1])
    np.testing.assert_allclose(np.sum(got.exponents), want, rtol=1e-11)
    np.testing.assert_allclose(got.log_det_mean, want, rtol=1e-11)
    np.testing.assert_allclose(first.exponents[0], got.exponents[0], rtol=1e-11)


@pytest.mark.parametrize("gain", [0.5, 0.9])
def test_a_random_tanh_network_at_the_origin_has_the_log_of_its_gain(gain):
    """Compare with the circular law, ln g as H grows.

    For H = 200: within 0.1 for a random W, and exactly ln(spectral radius).
    """
    w = gain * np.random.default_rng(1).normal(size=(200, 200)) / math.sqrt(200)
    cell = tbptt.Elman(1, 200)
    params = jax.tree.map(np.zeros_like, cell_params(cell))._replace(w_h=w)
    got = spectrum(cell, params, zero_carry(cell), np.zeros((600, 1)), count=1, warmup=200)
    assert abs(float(got.exponents[0]) - math.log(gain)) < 0.1
    radius = np.abs(np.linalg.eigvals(w)).max()
    assert abs(float(got.exponents[0]) - math.log(radius)) < 0.01
    assert abs(float(got.exponents[0]) - math.log(radius)) < 5 * float(got.standard_error[0]) + 1e-3


def test_the_standard_error_covers_the_exact_exponent():
    """Use h' = exp(x) h with x ~ N(-1/2, 1): the exponent is -1/2, its error 1/sqrt(S)."""

    class Multiplied(tbptt.DiagonalLinear):
        def __call__(self, params, carry, x):
            carry = type(carry)(carry.h * jnp.exp(x))
            return carry, carry.h

    cell = Multiplied(1, 1)
    carry = zero_carry(cell, value=1.0)
    measure = jax.jit(
        jax.vmap(lambda xs, carry: lyapunov_spectrum(cell, None, carry, xs), (0, None))
    )
    got = jax.tree.map(np.asarray, measure(drawn(200, 400, 1) - 0.5, carry))
    np.testing.assert_allclose(np.mean(got.standard_error), 1 / 20, rtol=0.05)
    within_two = np.mean(np.abs(got.exponents + 0.5) < 2 * got.standard_error)
    assert 0.88 < within_two < 0.99


def test_float32_neither_overflows_nor_underflows():
    cell, params = linear(np.diag([2.0, 0.5]).astype(np.float32))
    xs = np.zeros((2000, 2), np.float32)
    got = spectrum(cell, params, zero_carry(cell), xs, warmup=100)
    assert got.exponents.dtype == jnp.float32
    np.testing.assert_allclose(got.exponents, [math.log(2), -math.log(2)], rtol=1e-5)


def test_a_singular_jacobian_gives_minus_infinity_and_nan_parameters_nan():
    cell, params = linear(np.zeros((5, 5)))
    given = zero_carry(cell), np.zeros((200, 2))
    got = spectrum(cell, params, *given, warmup=150)
    assert (got.exponents == -np.inf).all() and got.log_det_mean == -np.inf
    assert np.isnan(got.standard_error).all()
    cell, params = linear(np.diag([0.5, 0.0, 0.25, 0.2, 0.1]))
    got = spectrum(cell, params, *given, warmup=150)
    np.testing.assert_allclose(got.exponents[:4], np.log([0.5, 0.25, 0.2, 0.1]), atol=1e-12)
    assert got.exponents[4] < -30  # the log of a rounding error, or -inf
    broken = jax.tree.map(lambda p: p * np.nan, params)
    got = spectrum(cell, broken, *given, warmup=150)
    assert np.isnan(got.exponents).all() and np.isnan(got.log_det_mean)
    assert np.isnan(predicted(got.exponents, 0.1))


def test_one_step_and_one_unit():
    cell = tbptt.DiagonalLinear(1, 1)
    got = spectrum(
        cell, cell_params(cell)._replace(a=np.asarray([-0.5])), zero_carry(cell), np.zeros((1, 1))
    )
    np.testing.assert_allclose(got.exponents, [math.log(0.5)], rtol=1e-15)
    assert np.isnan(got.standard_error[0])  # no error from one step


@pytest.mark.exhaustive
def test_the_predicted_horizon_equals_the_measured_one():
    """Use h' = a h, whose influence a^k falls to delta at k = ln delta / ln a.

    The profile shows it at the next whole step.
    """
    cell, delta = tbptt.DiagonalLinear(1, 1), 0.01
    xs, drawn_params = np.zeros((200, 1)), cell_params(cell)

    @jax.jit
    def horizons(params, carry, xs):
        got = lyapunov_spectrum(cell, params, carry, xs)
        profile = lag_profile(cell, params, carry, xs, total, lags=150)
        return memory_horizon(got.exponents, delta), measured_horizon(profile, delta)

    for a in (0.5, 0.9, 0.95):
        params = drawn_params._replace(a=np.asarray([a]))
        expected, measured = horizons(params, zero_carry(cell), xs)
        np.testing.assert_allclose(expected, math.log(delta) / math.log(a), rtol=1e-12)
        assert measured.h == math.ceil(expected)

    @jax.jit
    def profiles(params, carry, xs):
        return [
            lag_profile(cell, params, carry, xs, of, lags=20)
            for of in (total, lambda y, s: jnp.zeros(()))
        ]

    short, silent = jax.tree.map(np.asarray, profiles(params, zero_carry(cell), xs))
    assert horizon_of(short, delta).h == np.inf  # a^20 = 0.36 is above delta
    assert horizon_of(silent, delta).h == 0
    broken = short.mean.h.copy()
    broken[3] = np.nan
    assert np.isnan(horizon_of(short._replace(mean=type(short.mean)(broken)), delta).h)
    dip = short._replace(mean=type(short.mean)(np.asarray([1.0, 0.001, 0.5, 0.01, 0.001])))
    assert horizon_of(dip, delta).h == 3  # the last crossing, not the first


def test_the_horizon_of_a_non_finite_profile():
    """Check that an exploding gradient has an infinite horizon, before and after overflow."""
    cell, params = linear(np.asarray([[1.5]], np.float32))
    profile = jax.jit(functools.partial(lag_profile, cell, step_losses=total, lags=300))(
        params, zero_carry(cell), np.zeros((400, 2), np.float32)
    )
    profile = jax.tree.map(np.asarray, profile)
    assert np.isinf(profile.mean.h[219]) and np.isfinite(profile.mean.h[215])
    carry = type(profile.mean)
    for lags in (216, 219, 300):
        assert horizon_of(profile._replace(mean=carry(profile.mean.h[:lags])), 0.01).h == np.inf
    for means, want in (
        ([np.inf] * 4, np.inf),
        ([np.inf, np.inf, 1.0, 1.0], 2),
        ([np.inf, 1e37, 1e36, 1.0], 2),
    ):
        assert (
            horizon_of(profile._replace(mean=carry(np.asarray(means, np.float32))), 0.01).h == want
        )


def test_memory_horizon_edge_cases():
    assert predicted(0.0, 0.1) == np.inf and predicted(0.3, 0.1) == np.inf
    assert predicted(-np.inf, 0.1) == 0
    np.testing.assert_allclose(
        predicted(np.asarray([-2.0, -0.5, -1.0]), math.exp(-3)), 6.0, rtol=1e-12
    )
    assert predicted(np.asarray([-0.5, 0.1, -0.5]), 0.1) == np.inf
    with pytest.raises(ValueError, match="at least one exponent; got none"):
        memory_horizon(np.zeros((0,)), 0.1)
    for delta in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="delta must be a fraction between 0 and 1"):
            memory_horizon(-1.0, delta)
        with pytest.raises(ValueError, match="delta must be a fraction between 0 and 1"):
            inspect.unwrap(measured_horizon)(None, delta)


def test_input_errors(key):
    jax.eval_shape(functools.partial(check_errors, key))  # traced only


def check_errors(key):
    cell = tbptt.Elman(2, 3)
    spectrum = functools.partial(
        inspect.unwrap(lyapunov_spectrum), cell, cell.init(key)
    )  # without the type-checking hook
    carry, xs = cell.initial_carry(), jnp.ones((5, 2))
    with pytest.raises(ValueError, match="at most the 3 numbers of the carry; got count=4"):
        spectrum(carry, xs, count=4)
    with pytest.raises(ValueError, match="count must be at least 1"):
        spectrum(carry, xs, count=0)
    with pytest.raises(TypeError, match="count must be a Python int"):
        spectrum(carry, xs, count=2.0)
    for warmup in (5, -1):
        with pytest.raises(ValueError, match=f"got warmup={warmup}, T=5"):
            spectrum(carry, xs, warmup=warmup)
    with pytest.raises(TypeError, match="warmup must be a Python int"):
        spectrum(carry, xs, warmup=1.5)
    with pytest.raises(ValueError, match=r"one sequence \[T, D\]"):
        spectrum(cell.initial_carry((4,)), jnp.ones((5, 4, 2)))
    for batched in (cell.initial_carry((4,)), cell.initial_carry((1,))):
        with pytest.raises(
            ValueError, match=r"carry.h must have the shape \(3,\) .* without batch axes"
        ):
            spectrum(batched, xs)
    counting = CountingElman()
    with pytest.raises(TypeError, match=r"carry\['steps'\] is int32"):
        lyapunov_spectrum(counting, None, counting.initial_carry(), xs)
