"""Gradient by lag to the ends of a float's range: right up to overflow, then inf, and never NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.diagnostics import carry_influence, gradient_by_lag, lag_profile
from tbptt.diagnostics.carries import safe_norm
from tests.counting_cell import total


def test_float32_influence_overflows_to_inf_and_underflows_to_zero_never_to_nan():
    cell = tbptt.Elman(1, 2, activation=jax.nn.identity, dtype=jnp.float32)
    params = cell.init(jax.random.key(0))._replace(b=jnp.zeros(2, jnp.float32), w_x=jnp.zeros((1, 2), jnp.float32))
    xs = jnp.zeros((2000, 1), jnp.float32)
    for sigma, end in ((2.0, np.inf), (0.5, 0.0)):
        scaled = params._replace(w_h=sigma * jnp.eye(2, dtype=jnp.float32))
        got = carry_influence(cell, scaled, cell.initial_carry(), xs).h
        np.testing.assert_array_equal(got[:126], sigma ** np.arange(1.0, 127.0))
        assert got[-1] == end


def test_squares_do_not_underflow_in_float32():
    cell = tbptt.DiagonalLinear(1, 2, dtype=jnp.float32)
    params = cell.init(jax.random.key(0))._replace(a=jnp.full(2, 0.5, jnp.float32))
    xs = jnp.zeros((120, 1), jnp.float32)
    norms = gradient_by_lag(cell, params, cell.initial_carry(), xs, jnp.sum)
    np.testing.assert_allclose(norms, np.sqrt(2) * 0.5 ** np.arange(1.0, 121.0), rtol=1e-6)


def linear32(w):
    """A linear float32 network without input: gradients by lag are those of w^k."""
    cell = tbptt.Elman(1, len(w), activation=jax.nn.identity, dtype=jnp.float32)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    return cell, params._replace(w_h=jnp.asarray(w, jnp.float32))


@pytest.mark.parametrize("w", [1.5 * np.eye(2), 1.5 * np.array([[0.6, -0.8], [0.8, 0.6]]), np.diag([1.5, 0.0])])
def test_float32_norms_are_right_up_to_overflow_then_inf_and_never_nan(w):
    """2.3e38 and 3.4e38 lie on either side of float32's end: no zero below it, no NaN above."""
    cell, params = linear32(w)
    xs, lags = jnp.zeros((400, 1), jnp.float32), 300
    by_lag = gradient_by_lag(cell, params, cell.initial_carry(), xs, jnp.sum)
    measure = jax.jit(lambda p: lag_profile(cell, p, cell.initial_carry((3,)), jnp.stack(3 * [xs], 1), total, lags=lags))
    profile = measure(params)
    with np.errstate(over="ignore"):
        want = np.array([np.linalg.norm(np.linalg.matrix_power(w, k) @ np.ones(2)) for k in range(1, 401)])
        want = np.where(want > float(jnp.finfo(jnp.float32).max), np.inf, want)
    assert np.isfinite(want[216]) and want[218] == np.inf
    np.testing.assert_allclose(by_lag, want, rtol=1e-5)
    np.testing.assert_allclose(profile.mean.h, want[:lags], rtol=1e-5)  # of 303 numbers near the end: no early overflow
    np.testing.assert_allclose(profile.quantiles.h, np.tile(want[:lags], (3, 1)), rtol=1e-5)
    assert by_lag.dtype == profile.mean.h.dtype == jnp.float32


class Switching(tbptt.DiagonalLinear):
    """h' = x h: the inputs are the factors."""

    def __call__(self, params, carry, x):
        new = type(carry)(carry.h * x)
        return new, new.h


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_gradient_that_left_the_range_comes_back(factor):
    cell = Switching(1, 1, dtype=jnp.float32)
    xs = jnp.concatenate([jnp.full((300, 1), 1 / factor), jnp.full((300, 1), factor)]).astype(jnp.float32)
    norms = np.asarray(gradient_by_lag(cell, (), cell.initial_carry(), xs, jnp.sum))
    powers = np.concatenate([np.arange(1.0, 301.0), np.arange(299.0, -1.0, -1.0)])
    true = factor**powers
    inside = (true < float(jnp.finfo(jnp.float32).max)) & (true >= float(jnp.finfo(jnp.float32).tiny))
    np.testing.assert_array_equal(norms[inside], true[inside])
    assert (norms[~inside] == (np.inf if factor > 1 else 0)).all() and norms[-1] == 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=lambda d: d.__name__)
def test_half_precision_is_swept_in_its_own_dtype_and_measured_in_float32(dtype):
    cell = tbptt.DiagonalLinear(1, 2, dtype=dtype)
    xs = jnp.zeros((120, 1), dtype)
    for a in (2.0, 0.5):
        params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))._replace(a=jnp.full(2, a, dtype))
        norms = gradient_by_lag(cell, params, cell.initial_carry(), xs, jnp.sum)
        assert norms.dtype == jnp.float32
        np.testing.assert_allclose(norms, np.sqrt(2) * a ** np.arange(1.0, 121.0), rtol=1e-6)  # 2^17 leaves float16
    switching, xs = Switching(1, 1, dtype=dtype), jnp.ones((5, 1), dtype).at[-1].set(2.0**-24)  # float16's smallest
    norms = gradient_by_lag(switching, (), switching.initial_carry(), xs, jnp.sum)
    np.testing.assert_array_equal(norms, np.full(5, 2.0**-24))


def test_lanes_of_very_different_size_are_each_kept_in_range():
    cell, params = linear32(np.eye(1))
    lanes = jnp.asarray([1e38, 1e-30], jnp.float32)
    norms = gradient_by_lag(
        cell, params, cell.initial_carry((2,)), jnp.zeros((9, 2, 1), jnp.float32), lambda y: lanes @ y[:, 0]
    )
    np.testing.assert_array_equal(norms, np.tile(lanes, (9, 1)))


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 8.4e37, 8.6e37, 1e38, 1.9e38])
def test_safe_norm_is_no_division(size):
    """XLA divides by multiplying with the reciprocal, which is 0 for what is above 8.5e37."""
    a = jnp.full((3, 4), size / 2, jnp.float32).at[1].set(0)
    for of in (safe_norm, jax.jit(safe_norm, static_argnums=1)):
        np.testing.assert_allclose(of(a, (1,)), [size, 0, size], rtol=1e-6)
        np.testing.assert_allclose(of(a, (0, 1)), np.float32(size) * np.sqrt(2), rtol=1e-6)
    assert safe_norm(10 * a, (0, 1)) == (np.inf if size > 1e37 else safe_norm(10 * a, (1, 0)))
    assert np.isnan(safe_norm(a.at[0, 0].set(jnp.nan), (1,))[0]) and safe_norm(a.at[0, 0].set(-jnp.inf), (1,))[0] == np.inf


def test_a_mean_and_quantiles_beside_numbers_beyond_the_range():
    """Two lanes, one at 2^128: the mean, 2^127, is in the range though the sum and one of the numbers are not."""
    cell, params = linear32(2 * np.eye(1))
    lanes = jnp.asarray([1.0, 0.0], jnp.float32)[:, None]
    xs = jnp.zeros((130, 2, 1), jnp.float32)

    def loss(y, s):
        return jnp.sum(lanes * y)

    profile = lag_profile(cell, params, cell.initial_carry((2,)), xs, loss, lags=130, levels=(0.0, 0.5, 1.0))
    np.testing.assert_array_equal(profile.mean.h[126:129], [2.0**126, 2.0**127, np.inf])
    np.testing.assert_array_equal(profile.quantiles.h[:, 126], [0, 2.0**126, 2.0**127])
    np.testing.assert_array_equal(profile.quantiles.h[:, 127], [0, np.inf, np.inf])
    np.testing.assert_array_equal(profile.norms.h[0, 127], [np.inf, 0])
