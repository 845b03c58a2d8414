"""Gradient by lag against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.diagnostics import gradient_by_lag


def test_diagonal_linear_cell_decays_as_its_power(key):
    cell = tbptt.DiagonalLinear(2, 5)
    params = cell.init(key)
    xs = jax.random.normal(key, (30, 3, 2))
    norms = gradient_by_lag(cell, params, cell.initial_carry((3,)), xs, jnp.sum)
    lags = np.arange(1, 31)[:, None]
    want = np.sqrt(np.sum(np.asarray(params.a) ** (2 * lags), axis=1))
    np.testing.assert_allclose(norms, np.tile(want[:, None], (1, 3)), rtol=1e-12)


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
