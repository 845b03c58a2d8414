"""Gradient by lag at the limits of the dtype: exact up to overflow, then inf, and never NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.diagnostics import carry_influence, gradient_by_lag, lag_profile
from tbptt.diagnostics._recurrence import scaled_norm
from tests.support.counting_cell import total
from tests.support.sequences import cell_params, zero_carry

by_lag = jax.jit(gradient_by_lag, static_argnums=(0, 4))
profile_of = jax.jit(lag_profile, static_argnums=(0, 4), static_argnames=("lags", "levels"))
influence_of = jax.jit(carry_influence, static_argnums=0)


def zeros_like(cell):
    return jax.tree.map(np.zeros_like, cell_params(cell))


def test_float32_influence_overflows_to_inf_and_underflows_to_zero():
    cell = tbptt.Elman(1, 2, activation=jax.nn.identity, dtype=jnp.float32)
    params, xs = zeros_like(cell), np.zeros((2000, 1), np.float32)
    for sigma, end in ((2.0, np.inf), (0.5, 0.0)):
        scaled = params._replace(w_h=sigma * np.eye(2, dtype=np.float32))
        got = np.asarray(influence_of(cell, scaled, zero_carry(cell), xs).h)
        np.testing.assert_array_equal(got[:126], sigma ** np.arange(1.0, 127.0))
        assert got[-1] == end


def linear32(w):
    """Return a linear float32 network without input; its gradients by lag are those of w^k."""
    cell = tbptt.Elman(1, len(w), activation=jax.nn.identity, dtype=jnp.float32)
    return cell, zeros_like(cell)._replace(w_h=np.asarray(w, np.float32))


def test_squares_do_not_underflow_in_float32():
    cell, params = linear32(0.5 * np.eye(2))
    norms = by_lag(cell, params, zero_carry(cell), np.zeros((400, 1), np.float32), jnp.sum)[:120]
    np.testing.assert_allclose(norms, np.sqrt(2) * 0.5 ** np.arange(1.0, 121.0), rtol=1e-6)


@pytest.mark.parametrize(
    "w", [1.5 * np.eye(2), 1.5 * np.array([[0.6, -0.8], [0.8, 0.6]]), np.diag([1.5, 0.0])]
)
def test_float32_norms_are_exact_up_to_overflow_then_inf(w):
    """Use 2.3e38 and 3.4e38, on either side of float32's limit."""
    cell, params = linear32(w)
    lags = 300
    norms = by_lag(cell, params, zero_carry(cell), np.zeros((400, 1), np.float32), jnp.sum)
    profile = profile_of(
        cell, params, zero_carry(cell, (3,)), np.zeros((400, 3, 1), np.float32), total, lags=lags
    )
    with np.errstate(over="ignore"):
        want = np.array(
            [np.linalg.norm(np.linalg.matrix_power(w, k) @ np.ones(2)) for k in range(1, 401)]
        )
        want = np.where(want > float(jnp.finfo(jnp.float32).max), np.inf, want)
    assert np.isfinite(want[216]) and want[218] == np.inf
    np.testing.assert_allclose(norms, want, rtol=1e-5)
    np.testing.assert_allclose(
        profile.mean.h, want[:lags], rtol=1e-5
    )  # a mean of 303 large numbers
    np.testing.assert_allclose(profile.quantiles.h, np.tile(want[:lags], (3, 1)), rtol=1e-5)
    assert norms.dtype == profile.mean.h.dtype == jnp.float32


class Switching(tbptt.DiagonalLinear):
    """h' = x h, so the inputs are the factors."""

    def __call__(self, params, carry, x):
        new = type(carry)(carry.h * x)
        return new, new.h


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_gradient_that_left_the_range_returns(factor):
    cell = Switching(1, 1, dtype=jnp.float32)
    xs = np.repeat([1 / factor, factor], 300).astype(np.float32)[:, None]
    norms = np.asarray(by_lag(cell, (), zero_carry(cell), xs, jnp.sum))
    powers = np.concatenate([np.arange(1.0, 301.0), np.arange(299.0, -1.0, -1.0)])
    true = factor**powers
    inside = (true < float(jnp.finfo(jnp.float32).max)) & (
        true >= float(jnp.finfo(jnp.float32).tiny)
    )
    np.testing.assert_array_equal(norms[inside], true[inside])
    assert (norms[~inside] == (np.inf if factor > 1 else 0)).all() and norms[-1] == 1


def test_half_precision_is_propagated_in_its_dtype_and_measured_in_float32():
    dtype = jnp.float16
    cell = tbptt.DiagonalLinear(1, 2, dtype=dtype)
    for a in (2.0, 0.5):
        params = zeros_like(cell)._replace(a=np.full(2, a, dtype))
        norms = by_lag(cell, params, zero_carry(cell), np.zeros((120, 1), dtype), jnp.sum)
        assert norms.dtype == jnp.float32
        np.testing.assert_allclose(
            norms, np.sqrt(2) * a ** np.arange(1.0, 121.0), rtol=1e-6
        )  # 2^17 leaves float16
    switching, xs = (
        Switching(1, 1, dtype=dtype),
        np.asarray([[1.0], [1.0], [1.0], [1.0], [2.0**-24]], dtype),
    )
    norms = by_lag(switching, (), zero_carry(switching), xs, jnp.sum)  # 2^-24: float16's smallest
    np.testing.assert_array_equal(norms, np.full(5, 2.0**-24))


def test_batch_rows_of_very_different_scale_are_scaled_separately():
    cell, params = linear32(np.eye(1))
    rows = np.asarray([1e38, 1e-30], np.float32)
    norms = by_lag(
        cell,
        params,
        zero_carry(cell, (2,)),
        np.zeros((9, 2, 1), np.float32),
        lambda y: rows @ y[:, 0],
    )
    np.testing.assert_array_equal(norms, np.tile(rows, (9, 1)))


@jax.jit
def _norms(a):
    return (
        scaled_norm(a, (1,)),
        scaled_norm(a, (0, 1)),
        scaled_norm(10 * a, (0, 1)),
        scaled_norm(10 * a, (1, 0)),
    )


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 8.4e37, 8.6e37, 1e38, 1.9e38])
def test_scaled_norm_does_not_divide(size):
    """Check large norms: XLA divides by multiplying with the reciprocal, 0 above 8.5e37."""
    a = np.full((3, 4), size / 2, np.float32)
    a[1] = 0
    rows, whole, ten, same = map(np.asarray, _norms(a))
    np.testing.assert_allclose(rows, [size, 0, size], rtol=1e-6)
    np.testing.assert_allclose(whole, np.float32(size) * np.sqrt(2), rtol=1e-6)
    assert ten == (np.inf if size > 1e37 else same)
    a[0, 0] = np.nan
    assert np.isnan(_norms(a)[0])[0]
    a[0, 0] = -np.inf
    assert np.asarray(_norms(a)[0])[0] == np.inf


def test_mean_and_quantiles_of_numbers_beyond_the_range():
    """Use two batch rows, one at 2^128: the mean 2^127 is in the range, the sum is not."""
    cell, params = linear32(2 * np.eye(1))
    rows = np.asarray([[1.0], [0.0]], np.float32)
    xs = np.zeros((130, 2, 1), np.float32)

    def loss(y, s):
        return jnp.sum(rows * y)

    profile = profile_of(
        cell, params, zero_carry(cell, (2,)), xs, loss, lags=130, levels=(0.0, 0.5, 1.0)
    )
    profile = jax.tree.map(np.asarray, profile)
    np.testing.assert_array_equal(profile.mean.h[126:129], [2.0**126, 2.0**127, np.inf])
    np.testing.assert_array_equal(profile.quantiles.h[:, 126], [0, 2.0**126, 2.0**127])
    np.testing.assert_array_equal(profile.quantiles.h[:, 127], [0, np.inf, np.inf])
    np.testing.assert_array_equal(profile.norms.h[0, 127], [np.inf, 0])
