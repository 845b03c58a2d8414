"""Gradient by lag and the influence of the start, against closed forms and one autodiff call at a time."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.diagnostics import carry_influence, gradient_by_lag, lag_profile
from tbptt.diagnostics.carries import safe_norm


class CountingElman:
    """A cell of a user's own with an integer in its carry."""

    input_dim, hidden_dim = 2, 3

    def initial_carry(self, batch_shape=()):
        return {"h": jnp.zeros((*batch_shape, 3)), "steps": jnp.zeros(batch_shape, jnp.int32)}

    def init(self, key):
        return None

    def __call__(self, params, carry, x):
        h = jnp.tanh(carry["h"] + jnp.sum(x))
        return {"h": h, "steps": carry["steps"] + 1}, h


def total(y, s):
    del s
    return jnp.sum(y)


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


def test_bad_input_is_refused_by_name(key):
    cell = tbptt.Elman(2, 3)
    params, carry, xs = cell.init(key), cell.initial_carry(), jnp.ones((5, 2))
    by_lag, last, influence = map(inspect.unwrap, (lag_profile, gradient_by_lag, carry_influence))  # without the hook
    profile = functools.partial(by_lag, cell, params, carry, xs, total)
    with pytest.raises(ValueError, match=r"lags=6, T=5"):
        profile(lags=6)
    with pytest.raises(TypeError, match="lags must be a Python int"):
        profile(lags=2.0)
    with pytest.raises(ValueError, match=r"lags - 1 = 2 .* T - 1 = 4; got 1 \.\. 4"):
        profile(lags=3, at=[1, 4])
    with pytest.raises(ValueError, match=r"got 4 \.\. 5"):
        profile(lags=3, at=[4, 5])
    with pytest.raises(ValueError, match="at must be a non-empty list"):
        profile(lags=3, at=[])
    with pytest.raises(ValueError, match="levels must be"):
        profile(lags=3, levels=(0.5, 1.5))
    with pytest.raises(ValueError, match=r"resets must be booleans \[T, \*batch\]"):
        profile(lags=3, resets=jnp.zeros((4,), bool))
    with pytest.raises(ValueError, match=r"mask must be booleans \[T, \*batch\]"):
        profile(lags=3, mask=jnp.zeros((5,)))
    for wrong_d in (
        lambda: last(cell, params, carry, jnp.ones((5, 3)), jnp.sum),
        lambda: influence(cell, params, carry, jnp.ones((5, 3))),
    ):
        with pytest.raises(ValueError, match=r"D = Elman.input_dim = 2; got shape \(5, 3\)"):
            wrong_d()
    with pytest.raises(
        ValueError, match=r"carry.h must have the shape \(4, 3\) of cell.initial_carry\(\(4,\)\); got \(3,\)"
    ):
        last(cell, params, carry, jnp.ones((5, 4, 2)), jnp.sum)
    with pytest.raises(ValueError, match=r"carry.h must have the shape \(3,\) .* without batch axes .*; got \(4, 3\)"):
        influence(cell, params, cell.initial_carry((4,)), xs)
    with pytest.raises(ValueError, match=r"carry must be like cell.initial_carry\(\)"):
        influence(cell, params, (carry,), xs)
    with pytest.raises(ValueError, match=r"step_losses must return a floating scalar; got float64\[3\]"):
        by_lag(cell, params, carry, xs, lambda y, s: y, lags=3)
    with pytest.raises(ValueError, match="last_loss must return a floating scalar"):
        last(cell, params, carry, xs, lambda y: y)
    with pytest.raises(ValueError, match="at least one step"):
        last(cell, params, carry, xs[:0], jnp.sum)
    with pytest.raises(ValueError, match=r"one sequence \[T, D\]"):
        influence(cell, params, cell.initial_carry((4,)), jnp.ones((5, 4, 2)))
    counting = CountingElman()
    start = counting.initial_carry()
    for measure in (
        lambda: gradient_by_lag(counting, None, start, xs, jnp.sum),
        lambda: lag_profile(counting, None, start, xs, total, lags=2),
        lambda: carry_influence(counting, None, start, xs),
    ):
        with pytest.raises(TypeError, match=r"carry\['steps'\] is int32"):
            measure()
