"""Products of Jacobians: against dense SVDs, against closed forms beyond any float's range, and under their bound."""

import functools
import inspect

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import tbptt
from tbptt.diagnostics import (
    carry_influence,
    jacobian_product_svd,
    log_bound,
    log_sigma_max,
    lyapunov_spectrum,
    sigma_max,
    spectral_radius,
    step_jacobians,
)
from tests.counting_cell import CountingElman

STACK = tbptt.Stack((tbptt.LSTM(2, 3), tbptt.Elman(3, 4), tbptt.GRU(4, 2)))
RELU = tbptt.Elman(2, 7, activation=jax.nn.relu, gain=1.5)


def linear(w):
    """A linear Elman cell without input whose Jacobian is w^T at every step."""
    w = jnp.asarray(w)
    cell = tbptt.Elman(1, w.shape[0], activation=jax.nn.identity, dtype=w.dtype)
    return cell, cell.init(jax.random.key(0))._replace(w_h=w)


# Each is compiled once for all tests that measure the same cell over as many steps.
JITTED = {
    measure: jax.jit(measure, static_argnums=0)
    for measure in (step_jacobians, jacobian_product_svd, log_sigma_max, lyapunov_spectrum, carry_influence)
}
product_svd, largest_of = JITTED[jacobian_product_svd], JITTED[log_sigma_max]
each_measure = pytest.mark.parametrize("measure", JITTED)


def zeros(cell, T):
    return jnp.zeros((T, cell.input_dim), jax.tree.leaves(cell.initial_carry())[0].dtype)


@pytest.mark.parametrize("cell", [tbptt.Elman(2, 4), tbptt.LSTM(2, 3), STACK], ids=["elman", "lstm", "stack"])
def test_step_jacobians_are_those_of_autodiff_and_their_product_that_of_the_unrolled_cell(cell, key):
    params, carry, T = cell.init(key), cell.initial_carry(), 5
    xs = jax.random.normal(key, (T, 2))
    start, unravel = jax.flatten_util.ravel_pytree(carry)

    def unrolled(vector):
        carries = [unravel(vector)]
        for x in xs:
            carries.append(cell(params, carries[-1], x)[0])
        return jnp.stack([jax.flatten_util.ravel_pytree(c)[0] for c in carries[1:]])

    jacobians, log_s = JITTED[step_jacobians](cell, params, carry, xs), product_svd(cell, params, carry, xs)
    want = jax.jit(jax.jacrev(unrolled))(start)
    assert jacobians.shape == (T, start.size, start.size) and log_s.shape == (T, start.size)
    product = np.eye(start.size)
    for n in range(1, T + 1):
        product = np.asarray(jacobians[n - 1]) @ product
        np.testing.assert_allclose(product, want[n - 1], atol=1e-14)
        singular = np.linalg.svd(product, compute_uv=False)
        np.testing.assert_allclose(np.exp(log_s[n - 1]), singular, rtol=1e-9, atol=1e-14 * singular[0])


def test_elman_jacobian_in_the_lecture_letters(key):
    cell = tbptt.Elman(2, 4)
    params = cell.init(key)
    xs = jax.random.normal(key, (3, 2))
    _, hs = tbptt.unroll(cell, params, cell.initial_carry(), xs)
    want = (1 - hs**2)[:, :, None] * params.w_h.T
    np.testing.assert_allclose(step_jacobians(cell, params, cell.initial_carry(), xs), want, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_singular_value_of_a_long_product_has_full_relative_accuracy(size):
    """A random (non-normal) W to the power 60 against 400-digit arithmetic: a plain SVD would lose the small ones."""
    w = np.random.default_rng(size).normal(size=(size, size)) / 1.5
    cell, params = linear(w)
    got = product_svd(cell, params, cell.initial_carry(), zeros(cell, 60))
    with mpmath.workdps(400):
        power = mpmath.matrix(w.T.tolist()) ** 60
        want = [float(mpmath.log(s)) for s in mpmath.svd_r(power, compute_uv=False)]
    np.testing.assert_allclose(got[-1], want, atol=1e-11)
    np.testing.assert_allclose(np.sum(got, axis=1), np.arange(1, 61) * np.linalg.slogdet(w)[1], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_two_to_the_2000_fits(dtype):
    """Singular values 2 and 1/2 of a rotated W = Q diag Q^T, 2000 times: 2^2000 and 2^-2000 side by side."""
    rate = np.log([2.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.5])
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))[0]
    cell, params = linear(((q * np.exp(rate)) @ q.T).astype(dtype))
    got = product_svd(cell, params, cell.initial_carry(), zeros(cell, 2000))
    assert got.dtype == dtype
    each_step = 3e-5 if dtype == jnp.float32 else 1e-13  # in float32 a log of 1386 is known to 1e-4, and 2000 are added
    np.testing.assert_allclose(got, np.arange(1, 2001)[:, None] * rate, atol=2000 * each_step)
    largest = largest_of(cell, params, cell.initial_carry(), zeros(cell, 2000))
    np.testing.assert_allclose(largest, 2000 * np.log(2), rtol=1e-5 if dtype == jnp.float32 else 1e-13)


@pytest.mark.parametrize(
    "cell, T",
    [(tbptt.Elman(2, 1), 40), (tbptt.Elman(2, 20, gain=1.2), 40), (tbptt.LSTM(2, 5), 1), (STACK, 40), (RELU, 40)],
    ids=["too few for lobpcg", "elman", "lstm", "stack", "relu"],
)
def test_matrix_free_is_exact(cell, T, key):
    params, carry = cell.init(key), cell.initial_carry()
    xs = jax.random.normal(key, (T, 2))
    got = largest_of(cell, params, carry, xs)
    np.testing.assert_allclose(got, product_svd(cell, params, carry, xs)[-1, 0], atol=1e-9)


def test_singular_jacobians():
    w = np.diag([0.0, 0.5, 2.0, 1.0, 1.0, 1.0, 3.0])
    cell, params = linear(w)
    got = product_svd(cell, params, cell.initial_carry(), zeros(cell, 9))[:3]
    assert (np.asarray(got[:, -1]) == -np.inf).all()
    np.testing.assert_allclose(got[:, :-1], np.arange(1, 4)[:, None] * np.log([3, 2, 1, 1, 1, 0.5]), atol=1e-14)
    nilpotent = np.diag(np.ones(6), 1)  # the 7th power is 0, though no step is
    cell, params = linear(nilpotent)
    got = np.asarray(product_svd(cell, params, cell.initial_carry(), zeros(cell, 9)))
    np.testing.assert_array_equal((got == 0).sum(axis=1), [6, 5, 4, 3, 2, 1, 0, 0, 0])
    np.testing.assert_array_equal((got == -np.inf).sum(axis=1), [1, 2, 3, 4, 5, 6, 7, 7, 7])
    for T, want in ((6, 0.0), (7, -np.inf)):
        largest = largest_of(cell, params, cell.initial_carry(), zeros(cell, T))
        np.testing.assert_allclose(largest, want, atol=1e-9)


def test_nan_parameters_give_nan():
    for size in (3, 8):
        cell, params = linear(np.full((size, size), np.nan))
        carry, xs = cell.initial_carry(), zeros(cell, 60)
        assert np.isnan(product_svd(cell, params, carry, xs)).all()
        assert np.isnan(largest_of(cell, params, carry, xs))


@functools.cache
def slacks_of(activation, slope):
    """How far the bound is above the product's norm, in logs, at every n: compiled, for many keys and any gain."""
    cell, T = tbptt.Elman(3, 8, activation=activation), 50

    def slack(key, gain):
        keys = jax.random.split(key, 3)
        params = cell.init(keys[0])._replace(w_h=gain * jax.random.normal(keys[1], (8, 8)) / jnp.sqrt(8))
        log_s = jacobian_product_svd(cell, params, cell.initial_carry(), jax.random.normal(keys[2], (T, 3)))
        return log_bound(params.w_h, jnp.arange(1, T + 1), slope=slope) - log_s[:, 0]

    return jax.jit(jax.vmap(slack, (0, None)))


@pytest.mark.parametrize("gain", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("activation, slope", [(jnp.tanh, 1.0), (jax.nn.relu, 1.0), (jax.nn.sigmoid, 0.25)])
def test_the_bound_holds_always(activation, slope, gain):
    slacks = np.asarray(slacks_of(activation, slope)(jax.random.split(jax.random.key(1), 20), gain))
    assert slacks.min() >= -1e-12
    first = slacks[:, 0].min()
    assert first < 1.0  # and it is not vacuous: near the norm of one step


def test_the_bound_is_reached_by_an_orthogonal_linear_network():
    w = 1.1 * np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    cell, params = linear(w)
    got = product_svd(cell, params, cell.initial_carry(), zeros(cell, 30))
    np.testing.assert_allclose(got[:, 0], log_bound(w, jnp.arange(1, 31)), rtol=1e-12)
    np.testing.assert_allclose(got[:, -1], got[:, 0], rtol=1e-12)
    assert log_bound(w, 0) == 0 and log_bound(0 * w, 0) == 0 and log_bound(0 * w, 2) == -np.inf


def test_spectral_radius_and_sigma_max():
    w = np.asarray([[0.5, 100.0], [0.0, -0.9]])
    np.testing.assert_allclose(jax.jit(spectral_radius)(w), 0.9, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(sigma_max)(w), np.linalg.norm(w, 2), rtol=1e-12)
    rotation = np.asarray([[0.0, -2.0], [2.0, 0.0]])  # complex eigenvalues
    np.testing.assert_allclose(spectral_radius(rotation), 2.0, rtol=1e-12)


@pytest.mark.parametrize("measure", [step_jacobians, jacobian_product_svd, log_sigma_max])
def test_bad_input_is_refused_by_name(measure, key):
    measure = inspect.unwrap(measure)  # without the hook, which would speak first
    cell = tbptt.Elman(2, 3)
    params, carry = cell.init(key), cell.initial_carry()
    counting = CountingElman()
    with pytest.raises(TypeError, match=r"carry\['steps'\] is int32"):
        measure(counting, None, counting.initial_carry(), jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=r"one sequence \[T, D\].*shape \(5, 4, 2\)"):
        measure(cell, params, cell.initial_carry((4,)), jnp.ones((5, 4, 2)))
    with pytest.raises(ValueError, match="at least one step"):
        measure(cell, params, carry, jnp.ones((0, 2)))
    with pytest.raises(ValueError, match=r"carry.h must have the shape \(3,\) .* without batch axes .*; got \(4, 3\)"):
        measure(cell, params, cell.initial_carry((4,)), jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=r"D = Elman.input_dim = 2; got shape \(5, 3\)"):
        measure(cell, params, carry, jnp.ones((5, 3)))
    assert jax.tree.leaves(measure(cell, params, carry, jnp.ones((1, 2))))  # T = 1


def test_a_clipped_cell_has_the_jacobian_of_the_cell_inside(key):
    """Forward the two are one map; clipping changes only what is sent back."""
    plain = tbptt.Stack((tbptt.LSTM(2, 3), tbptt.Elman(3, 3)))
    params, carry, xs = plain.init(key), plain.initial_carry(), jax.random.normal(key, (5, 2))
    within = tbptt.Stack((tbptt.ClippedCell(plain.cells[0], 1e-3), plain.cells[1]))
    for cell in (within, tbptt.ClippedCell(plain, 1e-3)):
        for measure in JITTED.values():
            got, want = measure(cell, params, carry, xs), measure(plain, params, carry, xs)
            jax.tree.map(np.testing.assert_array_equal, got, want)


class ClipsItself(tbptt.Elman):
    """A user's own cell that clips what it sends back."""

    def __call__(self, params, carry, x):
        return super().__call__(params, tbptt.clip_cotangent(carry, 1.0), x)


@each_measure
def test_a_backward_pass_of_ones_own_has_no_jacobian(measure, key):
    cell = ClipsItself(2, 3)
    with pytest.raises(TypeError, match="ClipsItself has a backward pass of its own .* pass the cell without it"):
        measure(cell, cell.init(key), cell.initial_carry(), jnp.ones((5, 2)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=lambda d: d.__name__)
@each_measure
def test_half_precision_is_measured_in_float32(measure, dtype, key):
    half, single = (tbptt.Elman(2, 7, dtype=d) for d in (dtype, jnp.float32))
    params = half.init(key)
    xs = jax.random.normal(key, (5, 2), dtype)
    got = JITTED[measure](half, params, half.initial_carry(), xs)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    want = JITTED[measure](single, wide, single.initial_carry(), xs.astype(jnp.float32))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    for of in map(jax.jit, (spectral_radius, sigma_max)):
        assert of(params.w_h) == of(wide.w_h)


class Shrinking(CountingElman):
    """A cell that hands on another carry than it took."""

    def initial_carry(self, batch_shape=()):
        return {"h": jnp.zeros((*batch_shape, 3))}

    def __call__(self, params, carry, x):
        return {"h": carry["h"][:2]}, carry["h"]


def test_a_cell_that_changes_its_carry_is_named():
    cell = Shrinking()
    with pytest.raises(ValueError, match="Shrinking returned a carry of 2 numbers for one of 3"):
        step_jacobians(cell, None, cell.initial_carry(), jnp.ones((4, 2)))
