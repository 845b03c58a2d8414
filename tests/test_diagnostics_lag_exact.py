"""Gradient by lag and the influence of the start, against closed forms and one autodiff call at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.diagnostics import carry_influence, gradient_by_lag, lag_profile
from tests.counting_cell import total


def test_diagonal_linear_cell_decays_as_its_power(key):
    cell = tbptt.DiagonalLinear(2, 5)
    params = cell.init(key)
    xs = jax.random.normal(key, (30, 3, 2))
    norms = gradient_by_lag(cell, params, cell.initial_carry((3,)), xs, jnp.sum)
    lags = np.arange(1, 31)[:, None]
    want = np.sqrt(np.sum(np.asarray(params.a) ** (2 * lags), axis=1))
    np.testing.assert_allclose(norms, np.tile(want[:, None], (1, 3)), rtol=1e-12)
    profile = lag_profile(cell, params, cell.initial_carry((3,)), xs, total, lags=12)
    assert profile.norms.h.shape == (19, 12, 3) and profile.quantiles.h.shape == (3, 12)
    np.testing.assert_allclose(profile.norms.h, np.broadcast_to(want[:12, None], (19, 12, 3)), rtol=1e-12)
    np.testing.assert_allclose(profile.mean.h, want[:12], rtol=1e-12)
    np.testing.assert_allclose(profile.quantiles.h, np.tile(want[:12], (3, 1)), rtol=1e-12)


@pytest.mark.parametrize("cell", [tbptt.Elman(2, 4, gain=1.3), tbptt.LSTM(2, 4), tbptt.GRU(2, 4)])
def test_lag_k_is_the_gradient_by_the_carry_k_steps_back(cell, key):
    params, T = cell.init(key), 9
    xs = jax.random.normal(key, (T, 2))
    norms = gradient_by_lag(cell, params, cell.initial_carry(), xs, lambda y: jnp.sum(y**2))
    for lag in (1, 2, 5, T):
        before, _ = tbptt.unroll(cell, params, cell.initial_carry(), xs[: T - lag])

        def loss(carry, lag=lag):
            return jnp.sum(tbptt.unroll(cell, params, carry, xs[T - lag :])[1][-1] ** 2)

        want = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(before))))
        np.testing.assert_allclose(norms[lag - 1], want, rtol=1e-12)


STACK = tbptt.Stack((tbptt.LSTM(2, 3), tbptt.Elman(3, 4), tbptt.GRU(4, 2)))


def run(cell, params, carry, xs, resets):
    """The plain loop, with nothing of the library's but the cell; also the last output."""
    y = None
    for x, reset in zip(xs, resets, strict=True):
        start = cell.initial_carry(x.shape[:-1])
        carry = jax.tree.map(lambda new, old, reset=reset: jnp.where(reset[:, None], new, old), start, carry)
        carry, y = cell(params, carry, x)
    return carry, y


@pytest.mark.parametrize("cell, with_resets", [(tbptt.LSTM(2, 3), False), (STACK, True)], ids=["lstm", "stack-resets"])
def test_the_sweeps_are_one_autodiff_call_for_each_loss_lag_field_and_layer(cell, with_resets, key):
    T, B, lags, at = 6, 2, 3, [3, 5]
    params, carry = cell.init(key), cell.initial_carry((B,))
    xs = jax.random.normal(key, (T, B, 2))
    targets = jax.random.normal(jax.random.key(1), (T, B, cell.hidden_dim))
    resets = jnp.zeros((T, B), bool).at[4, 1].set(with_resets)

    def squared(y, s):
        return jnp.sum((y - targets[s]) ** 2)

    def measure(params, carry, xs):
        given = resets if with_resets else None
        return lag_profile(cell, params, carry, xs, squared, lags=lags, at=at, resets=given)

    profile = jax.jit(measure)(params, carry, xs)
    for i, s in enumerate(at):
        for k in range(1, lags + 1):
            first = s - k + 1
            before, _ = run(cell, params, carry, xs[:first], resets[:first])

            def loss(c, s=s, window=slice(first, s + 1)):
                return squared(run(cell, params, c, xs[window], resets[window])[1], s)

            want = jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g**2, axis=-1)), jax.grad(loss)(before))
            got = jax.tree.map(lambda n, i=i, k=k: n[i, k - 1], profile.norms)
            assert jax.tree.structure(got) == jax.tree.structure(carry)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-300), got, want)
    if with_resets:
        zeros = [np.asarray(n)[1, 1:, 1] for n in jax.tree.leaves(profile.norms)]  # s = 5, lags 2 and 3, lane 1
        assert all((z == 0).all() for z in zeros)
    leaf, mean, quantiles = (jax.tree.leaves(a)[0] for a in (profile.norms, profile.mean, profile.quantiles))
    np.testing.assert_allclose(mean, np.mean(leaf, axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(quantiles, np.quantile(leaf, [0.1, 0.5, 0.9], axis=(0, 2)), rtol=1e-12)


def test_h_and_c_of_an_lstm_are_told_apart(key):
    cell = tbptt.LSTM(2, 3, forget_bias=50.0)
    params = cell.init(key)._replace(w_h=jnp.zeros((3, 12)))  # c' = c + ...: the carousel; h is not looked at
    xs = jax.random.normal(key, (20, 2))
    profile = lag_profile(cell, params, cell.initial_carry(), xs, total, lags=10, at=[19])
    assert (np.asarray(profile.mean.h) == 0).all()
    np.testing.assert_allclose(profile.mean.c, np.full(10, float(profile.mean.c[0])), rtol=1e-12)
    influence = carry_influence(cell, params, cell.initial_carry(), xs)
    assert (np.asarray(influence.h) == 0).all() and (np.asarray(influence.c) >= 1).all()


def test_linear_elman_the_influence_of_the_start_is_a_power_of_w(key):
    cell = tbptt.Elman(2, 5, activation=jax.nn.identity)
    params = cell.init(key)._replace(w_h=jax.random.normal(key, (5, 5)) / 2)
    got = jax.jit(functools.partial(carry_influence, cell))(params, cell.initial_carry(), jnp.ones((40, 2)))
    want = [np.linalg.norm(np.linalg.matrix_power(np.asarray(params.w_h), n), 2) for n in range(1, 41)]
    np.testing.assert_allclose(got.h, want, rtol=1e-12)


def test_the_influence_of_each_field_is_its_own_columns_of_the_jacobian(key):
    params, carry = STACK.init(key), STACK.initial_carry()
    xs = jax.random.normal(key, (6, 2))
    got = carry_influence(STACK, params, carry, xs)
    jacobian = jax.jacrev(lambda c: jax.flatten_util.ravel_pytree(tbptt.unroll(STACK, params, c, xs)[0])[0])(carry)
    jax.tree.map(lambda n, j: np.testing.assert_allclose(n[-1], np.linalg.norm(j, 2), rtol=1e-12), got, jacobian)


def test_masked_steps_hold_the_gradient_as_they_hold_the_carry(key):
    cell, T, B = tbptt.GRU(2, 3), 7, 2
    params, carry = cell.init(key), cell.initial_carry((B,))
    xs = jax.random.normal(key, (T, B, 2))
    mask = jnp.ones((T, B), bool).at[2:4, 0].set(False).at[6, 1].set(False)
    padded = jnp.where(mask[..., None], xs, jnp.nan)
    profile = lag_profile(cell, params, carry, padded, total, lags=7, at=[6], mask=mask)
    short = gradient_by_lag(cell, params, cell.initial_carry(), jnp.delete(xs[:, 0], jnp.asarray([2, 3]), axis=0), jnp.sum)
    np.testing.assert_allclose(profile.norms.h[0, :, 0], np.asarray(short)[[0, 1, 2, 2, 2, 3, 4]], rtol=1e-12)
    assert (np.asarray(profile.norms.h[0, :, 1]) == 0).all()  # the loss of a step that does not exist


@pytest.mark.parametrize("cell", [tbptt.Elman(1, 1), tbptt.LSTM(1, 1), tbptt.GRU(1, 1)])
def test_one_step_and_one_unit(cell, key):
    params, carry, xs = cell.init(key), cell.initial_carry(), jnp.ones((1, 1))
    profile = lag_profile(cell, params, carry, xs, total, lags=1)
    want = jax.grad(lambda c: jnp.sum(cell(params, c, xs[0])[1]))(carry)
    jax.tree.map(lambda n, g: np.testing.assert_allclose(n, abs(g[None]), rtol=1e-12), profile.norms, want)
    assert gradient_by_lag(cell, params, carry, xs, jnp.sum).shape == (1,)
    assert jax.tree.leaves(carry_influence(cell, params, carry, xs))[0].shape == (1,)


def test_a_loss_that_ignores_the_carry_gives_zeros_and_nan_parameters_give_nan(key):
    cell = tbptt.GRU(2, 3)
    params, carry, xs = cell.init(key), cell.initial_carry((2,)), jnp.ones((5, 2, 2))
    profile = lag_profile(cell, params, carry, xs, lambda y, s: jnp.ones(()) * s, lags=3)
    assert all((np.asarray(a) == 0).all() for a in (profile.norms.h, profile.mean.h, profile.quantiles.h))
    assert (np.asarray(gradient_by_lag(cell, params, carry, xs, lambda y: jnp.ones(()))) == 0).all()
    bad = params._replace(b=params.b * jnp.nan)
    assert np.isnan(lag_profile(cell, bad, carry, xs, total, lags=3).mean.h).all()
    assert np.isnan(carry_influence(cell, bad, cell.initial_carry(), xs[:, 0]).h).all()
