"""Gradient by lag and carry influence against closed forms and autodiff of the plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.diagnostics import carry_influence, gradient_by_lag, lag_profile
from tests.support.counting_cell import total
from tests.support.sequences import cell_params, zero_carry

by_lag = jax.jit(gradient_by_lag, static_argnums=(0, 4))
profile_of = jax.jit(lag_profile, static_argnums=(0, 4), static_argnames=("lags", "at"))
influence_of = jax.jit(carry_influence, static_argnums=0)
STACK = tbptt.Stack((tbptt.LSTM(2, 2), tbptt.Elman(2, 3)))


def drawn(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape)


def plain(tree):
    return jax.tree.map(np.asarray, tree)


def run(cell, params, carry, xs, resets, offsets):
    """Run the plain loop over the cell, with an offset added to every entering carry."""
    start = cell.initial_carry(xs.shape[1:-1])

    def step(carry, given):
        x, reset, offset = given
        carry = jax.tree.map(jnp.add, carry, offset)
        carry = jax.tree.map(lambda new, old: jnp.where(reset[..., None], new, old), start, carry)
        return cell(params, carry, x)

    return jax.lax.scan(step, carry, (xs, resets, offsets))


def test_diagonal_linear_cell_decays_as_its_power():
    cell, T, lags = tbptt.DiagonalLinear(2, 5), 16, 7
    params, carry, xs = cell_params(cell), zero_carry(cell, (3,)), drawn(T, 3, 2)
    norms = by_lag(cell, params, carry, xs, jnp.sum)
    want = np.sqrt(np.sum(params.a ** (2 * np.arange(1, T + 1)[:, None]), axis=1))
    np.testing.assert_allclose(norms, np.tile(want[:, None], (1, 3)), rtol=1e-12)
    profile = profile_of(cell, params, carry, xs, total, lags=lags)
    want = want[:lags]
    assert profile.norms.h.shape == (10, lags, 3) and profile.quantiles.h.shape == (3, lags)
    np.testing.assert_allclose(
        profile.norms.h, np.broadcast_to(want[:, None], (10, lags, 3)), rtol=1e-12
    )
    np.testing.assert_allclose(profile.mean.h, want, rtol=1e-12)
    np.testing.assert_allclose(profile.quantiles.h, np.tile(want, (3, 1)), rtol=1e-12)


def test_lag_profile_and_gradient_by_lag_equal_autodiff_for_each_loss_lag_field_and_layer():
    cell, T, B, lags, at = STACK, 6, 2, 3, (3, 5)
    params, carry, xs, targets = (
        cell_params(cell),
        zero_carry(cell, (B,)),
        drawn(T, B, 2),
        drawn(T, B, cell.hidden_dim),
    )
    resets = np.zeros((T, B), bool)
    resets[4, 1] = True

    def squared(y, s):
        return jnp.sum((y - jnp.asarray(targets)[s]) ** 2)

    def losses(params, offsets):
        ys = run(cell, params, carry, xs, resets, offsets)[1]
        return jnp.stack([squared(ys[s], s) for s in at])

    @jax.jit
    def all_of(params, offsets):
        first = jax.tree.map(lambda a: a[0], carry)
        return (
            lag_profile(cell, params, carry, xs, squared, lags=lags, at=at, resets=resets),
            gradient_by_lag(
                cell, params, first, xs[:, 0], lambda y: jnp.sum((y - targets[-1, 0]) ** 2)
            ),
            jax.jacrev(losses, argnums=1)(params, offsets),
        )

    offsets = jax.tree.map(lambda a: np.zeros((T, *a.shape)), carry)
    profile, by_lag_of_row, slopes = plain(all_of(params, offsets))  # slopes [losses, T, B, H]
    for i, s in enumerate(at):
        for k in range(1, lags + 1):
            want = jax.tree.map(
                lambda g, i=i, first=s - k + 1: np.sqrt(np.sum(g[i, first] ** 2, axis=-1)), slopes
            )
            got = jax.tree.map(lambda n, i=i, k=k: n[i, k - 1], profile.norms)
            assert jax.tree.structure(got) == jax.tree.structure(carry)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-300), got, want
            )
    zeros = [n[1, 1:, 1] for n in jax.tree.leaves(profile.norms)]  # s = 5, lags 2 and 3, row 1
    assert all((z == 0).all() for z in zeros)
    leaf, mean, quantiles = (
        jax.tree.leaves(a)[0] for a in (profile.norms, profile.mean, profile.quantiles)
    )
    np.testing.assert_allclose(mean, np.mean(leaf, axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        quantiles, np.quantile(leaf, [0.1, 0.5, 0.9], axis=(0, 2)), rtol=1e-12
    )
    # Row 0 is not reset. The gradient by lag is that of all fields, and the last step is lag 1.
    want = np.sqrt(sum(np.sum(g[1, :, 0] ** 2, axis=-1) for g in jax.tree.leaves(slopes)))[::-1]
    assert min(want) > 1e-6
    np.testing.assert_allclose(by_lag_of_row, want, rtol=1e-12)


def test_the_carry_influence_of_a_linear_elman_is_a_power_of_w():
    cell = tbptt.Elman(2, 5, activation=jax.nn.identity)
    params = cell_params(cell)._replace(w_h=drawn(5, 5) / 2)
    got = influence_of(cell, params, zero_carry(cell), np.ones((40, 2)))
    want = [np.linalg.norm(np.linalg.matrix_power(params.w_h, n), 2) for n in range(1, 41)]
    np.testing.assert_allclose(got.h, want, rtol=1e-12)


def test_the_carry_influence_of_a_field_is_the_norm_of_its_jacobian_columns():
    params, carry, xs = cell_params(STACK), zero_carry(STACK), drawn(6, 2)

    def last(carry, params):
        offsets = jax.tree.map(lambda a: np.zeros((len(xs), *a.shape)), carry)
        last, _ = run(STACK, params, carry, xs, np.zeros(len(xs), bool), offsets)
        return jax.flatten_util.ravel_pytree(last)[0]

    @jax.jit
    def both(params, carry):
        return carry_influence(STACK, params, carry, xs), jax.jacfwd(last)(carry, params)

    got, by_start = both(params, carry)
    jax.tree.map(
        lambda n, j: np.testing.assert_allclose(
            np.asarray(n)[-1], np.linalg.norm(np.asarray(j), 2), rtol=1e-12
        ),
        got,
        by_start,
    )


def test_masked_steps_hold_the_gradient_and_the_carry():
    cell, T, B = tbptt.Elman(2, 3), 7, 2
    params, xs, mask = cell_params(cell), drawn(T, B, 2), np.ones((T, B), bool)
    mask[2:4, 0] = mask[6, 1] = False
    padded = np.where(mask[..., None], xs, np.nan)
    profile = plain(
        profile_of(cell, params, zero_carry(cell, (B,)), padded, total, lags=7, at=(6,), mask=mask)
    )
    short = np.asarray(
        by_lag(cell, params, zero_carry(cell), np.delete(xs[:, 0], [2, 3], axis=0), jnp.sum)
    )
    np.testing.assert_allclose(profile.norms.h[0, :, 0], short[[0, 1, 2, 2, 2, 3, 4]], rtol=1e-12)
    assert (profile.norms.h[0, :, 1] == 0).all()  # the loss of a masked step


@pytest.mark.exhaustive
def test_one_step_and_one_unit():
    cell = tbptt.LSTM(1, 1)
    params, carry, xs = cell_params(cell), zero_carry(cell), np.ones((1, 1))

    @jax.jit
    def all_of(params, carry, xs):
        want = jax.grad(lambda c: jnp.sum(cell(params, c, xs[0])[1]))(carry)
        profile, lag = (
            lag_profile(cell, params, carry, xs, total, lags=1),
            gradient_by_lag(cell, params, carry, xs, jnp.sum),
        )
        return profile.norms, want, lag, carry_influence(cell, params, carry, xs)

    norms, want, lag, influence = plain(all_of(params, carry, xs))
    jax.tree.map(lambda n, g: np.testing.assert_allclose(n, abs(g[None]), rtol=1e-12), norms, want)
    assert lag.shape == (1,) and jax.tree.leaves(influence)[0].shape == (1,)


def test_a_loss_that_ignores_the_carry_gives_zeros_and_nan_parameters_give_nan():
    cell = tbptt.Elman(2, 3)
    params, carry, xs = cell_params(cell), zero_carry(cell, (2,)), np.ones((5, 2, 2))

    @jax.jit
    def all_of(params, carry, xs):
        silent = lag_profile(cell, params, carry, xs, lambda y, s: jnp.ones(()) * s, lags=3)
        lag = gradient_by_lag(cell, params, carry, xs, lambda y: jnp.ones(()))
        heard = lag_profile(cell, params, carry, xs, total, lags=3).mean.h
        return silent, lag, heard, carry_influence(cell, params, cell.initial_carry(), xs[:, 0]).h

    silent, lag, heard, influence = plain(all_of(params, carry, xs))
    assert all((a == 0).all() for a in (silent.norms.h, silent.mean.h, silent.quantiles.h, lag))
    assert (heard > 0).all() and (influence > 0).all()
    _, _, heard, influence = plain(all_of(params._replace(b=params.b * np.nan), carry, xs))
    assert np.isnan(heard).all() and np.isnan(influence).all()
