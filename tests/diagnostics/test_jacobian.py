"""Products of Jacobians against dense SVDs, closed forms beyond any float's range, and a bound."""

import functools
import inspect
import re

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
from tests.support.counting_cell import CountingElman
from tests.support.sequences import cell_params, zero_carry

STACK = tbptt.Stack((tbptt.LSTM(2, 2), tbptt.Elman(2, 3)))


def linear(w):
    """Return a cell whose Jacobian is w^T at every step without input, where h stays 0.

    It is not linear, so that other tests share its programs.
    """
    cell = tbptt.Elman(2, w.shape[0], activation=jax.nn.leaky_relu, dtype=w.dtype)
    return cell, cell_params(cell)._replace(w_h=w)


# Compiled once for all tests of the same cell and number of steps.
JITTED = {
    measure: jax.jit(measure, static_argnums=0)
    for measure in (
        step_jacobians,
        jacobian_product_svd,
        log_sigma_max,
        lyapunov_spectrum,
        carry_influence,
    )
}
product_svd, largest_of = JITTED[jacobian_product_svd], JITTED[log_sigma_max]
exhaustive = pytest.mark.exhaustive
each_measure = pytest.mark.parametrize("measure", JITTED)
bound, radius, largest_singular = map(jax.jit, (log_bound, spectral_radius, sigma_max))
bound_of_slow_units = jax.jit(lambda w, steps: log_bound(w, steps, slope=0.25))


def second(*values):
    return pytest.param(*values, marks=exhaustive)


MANY, FEW = 1200, 6  # steps of all products, and of all largest singular values, of 7 units


def zeros(cell, T=MANY):
    return np.zeros((T, cell.input_dim), jax.tree.leaves(zero_carry(cell))[0].dtype)


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape)


def test_step_jacobians_equal_autodiff_and_their_product_that_of_the_unrolled_cell():
    cell, T = STACK, 5
    params, carry = cell_params(cell), zero_carry(cell)
    xs = drawn(T, 2)
    start = np.concatenate(jax.tree.leaves(carry))

    def unrolled(vector, params):
        unravel = jax.flatten_util.ravel_pytree(carry)[1]

        def step(c, x):
            new = cell(params, c, x)[0]
            return new, jax.flatten_util.ravel_pytree(new)[0]

        return jax.lax.scan(step, unravel(vector), xs)[1]

    @jax.jit
    def all_of(params, start):
        given = cell, params, carry, xs
        return (
            step_jacobians(*given),
            jacobian_product_svd(*given),
            jax.jacrev(unrolled)(start, params),
        )

    jacobians, log_s, want = map(np.asarray, all_of(params, start))
    assert jacobians.shape == (T, start.size, start.size) and log_s.shape == (T, start.size)
    product = np.eye(start.size)
    for n in range(1, T + 1):
        product = jacobians[n - 1] @ product
        np.testing.assert_allclose(product, want[n - 1], atol=1e-14)
        singular = np.linalg.svd(product, compute_uv=False)
        np.testing.assert_allclose(
            np.exp(log_s[n - 1]), singular, rtol=1e-9, atol=1e-14 * singular[0]
        )


def test_elman_jacobian_formula():
    cell = tbptt.Elman(2, 4)
    params, xs = cell_params(cell), drawn(3, 2)
    hs = [np.zeros(4)]
    for x in xs:
        hs.append(np.tanh(hs[-1] @ params.w_h + x @ params.w_x + params.b))
    want = (1 - np.stack(hs[1:]) ** 2)[:, :, None] * params.w_h.T
    np.testing.assert_allclose(
        JITTED[step_jacobians](cell, params, zero_carry(cell), xs), want, rtol=1e-12
    )


@pytest.mark.parametrize("size", [7, second(1), second(8)])
def test_every_singular_value_of_a_long_product_has_full_relative_accuracy(size):
    """Compare W^60 for a random (non-normal) W with 400-digit arithmetic.

    A plain SVD would lose the small singular values.
    """
    w = np.random.default_rng(size).normal(size=(size, size)) / 1.5
    cell, params = linear(w)
    steps = MANY if size == 7 else 60
    got = np.asarray(product_svd(cell, params, zero_carry(cell), zeros(cell, steps)))[:60]
    with mpmath.workdps(400):
        power = mpmath.matrix(w.T.tolist()) ** 60
        want = [float(mpmath.log(s)) for s in mpmath.svd_r(power, compute_uv=False)]
    np.testing.assert_allclose(got[-1], want, atol=1e-11)
    np.testing.assert_allclose(
        np.sum(got, axis=1), np.arange(1, 61) * np.linalg.slogdet(w)[1], rtol=1e-12, atol=1e-11
    )


@pytest.mark.parametrize("dtype", [np.float64, second(np.float32)])
def test_singular_values_beyond_the_range_of_the_dtype(dtype):
    """Use W = Q diag(2, 1/2) Q^T, whose powers have singular values 2^T and 2^-T."""
    rate = np.log([2.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.5])
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))[0]
    cell, params = linear(((q * np.exp(rate)) @ q.T).astype(dtype))
    got = product_svd(cell, params, zero_carry(cell), zeros(cell))
    assert got.dtype == dtype
    each_step = (
        3e-5 if dtype == np.float32 else 1e-13
    )  # in float32 a log of 832 is accurate to 1e-4
    np.testing.assert_allclose(got, np.arange(1, MANY + 1)[:, None] * rate, atol=MANY * each_step)
    for sign in (-1, 1):  # 2^1080 or, in float32, 2^180
        power = sign * (180 if dtype == np.float64 else 30)
        scaled = params._replace(w_h=np.ldexp(params.w_h, power))
        largest = largest_of(cell, scaled, zero_carry(cell), zeros(cell, FEW))
        np.testing.assert_allclose(
            largest, FEW * (1 + power) * np.log(2), rtol=1e-5 if dtype == np.float32 else 1e-13
        )


@pytest.mark.parametrize("size", [7, second(2)], ids=["7", "too few for lobpcg"])
def test_matrix_free_is_exact(size):
    # Mostly without the bend, and nearly orthogonal: the largest singular values are close.
    w = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    (cell, params), xs = linear(w), drawn(FEW, 2) / 3
    params, carry = params._replace(b=np.full(size, 0.5)), zero_carry(cell)
    got = largest_of(cell, params, carry, xs)
    padded = np.concatenate([xs, zeros(cell, MANY - FEW)])
    want = np.asarray(product_svd(cell, params, carry, padded))[FEW - 1, 0]
    np.testing.assert_allclose(got, want, atol=1e-9)
    linearly = np.asarray(product_svd(cell, params, carry, zeros(cell)))[FEW - 1, 0]
    assert size == 2 or abs(want - linearly) > 1e-3  # the steps have other Jacobians than w


def test_singular_jacobians():
    w = np.diag([0.0, 0.5, 2.0, 1.0, 1.0, 1.0, 3.0])
    cell, params = linear(w)
    got = np.asarray(product_svd(cell, params, zero_carry(cell), zeros(cell)))[:3]
    assert (got[:, -1] == -np.inf).all()
    np.testing.assert_allclose(
        got[:, :-1], np.arange(1, 4)[:, None] * np.log([3, 2, 1, 1, 1, 0.5]), atol=1e-14
    )
    nilpotent = np.diag(np.ones(6), 1)  # only the 7th power is 0
    cell, params = linear(nilpotent)
    got = np.asarray(product_svd(cell, params, zero_carry(cell), zeros(cell)))[:9]
    np.testing.assert_array_equal((got == 0).sum(axis=1), [6, 5, 4, 3, 2, 1, 0, 0, 0])
    np.testing.assert_array_equal((got == -np.inf).sum(axis=1), [1, 2, 3, 4, 5, 6, 7, 7, 7])
    largest = largest_of(cell, params, zero_carry(cell), zeros(cell, FEW))
    np.testing.assert_allclose(largest, 0, atol=1e-9)  # nearly singular
    cell, params = linear(np.diag([1.0, 1, 1, 0, 1, 1], 1))  # the 4th power is 0
    assert largest_of(cell, params, zero_carry(cell), zeros(cell, FEW)) == -np.inf


def test_nan_parameters_give_nan():
    cell, params = linear(np.full((7, 7), np.nan))
    assert np.isnan(product_svd(cell, params, zero_carry(cell), zeros(cell))).all()
    assert np.isnan(largest_of(cell, params, zero_carry(cell), zeros(cell, FEW)))


@exhaustive
def test_the_bound_always_holds():
    cell, T = tbptt.Elman(3, 8, activation=jax.nn.sigmoid), 50

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def slacks(key, gain):
        keys = jax.random.split(key, 3)
        params = cell.init(keys[0])._replace(
            w_h=gain * jax.random.normal(keys[1], (8, 8)) / jnp.sqrt(8)
        )
        log_s = jacobian_product_svd(
            cell, params, zero_carry(cell), jax.random.normal(keys[2], (T, 3))
        )
        return log_bound(params.w_h, jnp.arange(1, T + 1), slope=0.25) - log_s[:, 0]

    for gain in (0.3, 1.0, 3.0):
        found = np.asarray(slacks(jax.random.split(jax.random.key(1), 20), gain))
        assert found.min() >= -1e-12
        assert found[:, 0].min() < 1.0  # not vacuous: near the norm of one step


def test_the_bound_is_attained_by_an_orthogonal_linear_network():
    w = 1.1 * np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))[0]
    cell, params = linear(w)
    got = np.asarray(product_svd(cell, params, zero_carry(cell), zeros(cell)))[:9]
    np.testing.assert_allclose(got[:, 0], bound(w, np.arange(1, 10)), rtol=1e-12)
    np.testing.assert_allclose(got[:, -1], got[:, 0], rtol=1e-12)
    slower = np.asarray(bound_of_slow_units(w, np.arange(1, 10))) - np.asarray(
        bound(w, np.arange(1, 10))
    )
    np.testing.assert_allclose(slower, np.arange(1, 10) * np.log(0.25), rtol=1e-12)
    assert bound(w, 0) == 0 and bound(0 * w, 0) == 0 and bound(0 * w, 2) == -np.inf


def test_spectral_radius_and_sigma_max():
    w = np.asarray([[0.5, 100.0], [0.0, -0.9]])
    np.testing.assert_allclose(radius(w), 0.9, rtol=1e-12)
    np.testing.assert_allclose(largest_singular(w), np.linalg.norm(w, 2), rtol=1e-12)
    rotation = np.asarray([[0.0, -2.0], [2.0, 0.0]])  # complex eigenvalues
    np.testing.assert_allclose(radius(rotation), 2.0, rtol=1e-12)


@pytest.mark.parametrize("measure", [step_jacobians, jacobian_product_svd, log_sigma_max])
def test_input_errors(measure):
    measure = inspect.unwrap(measure)  # without the type-checking hook
    cell = tbptt.Elman(2, 3)
    params, carry = cell_params(cell), zero_carry(cell)
    counting = CountingElman()
    with pytest.raises(TypeError, match=r"carry\['steps'\] is int32"):
        measure(counting, None, zero_carry(counting), np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"one sequence \[T, D\].*shape \(5, 4, 2\)"):
        measure(cell, params, zero_carry(cell, (4,)), np.ones((5, 4, 2)))
    with pytest.raises(ValueError, match="at least one step"):
        measure(cell, params, carry, np.ones((0, 2)))
    with pytest.raises(
        ValueError,
        match=r"carry.h must have the shape \(3,\) .* without batch axes .*; got \(4, 3\)",
    ):
        measure(cell, params, zero_carry(cell, (4,)), np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"D = Elman.input_dim = 2; got shape \(5, 3\)"):
        measure(cell, params, carry, np.ones((5, 3)))
    assert jax.tree.leaves(
        jax.eval_shape(functools.partial(measure, cell), params, carry, np.ones((1, 2)))
    )  # T = 1


@pytest.mark.exhaustive
def test_a_clipped_cell_has_the_jacobian_of_the_cell_inside():
    """Check that every measure compiles to the same program: only the backward pass differs."""
    plain = tbptt.Stack((tbptt.Elman(2, 3), tbptt.Elman(3, 2)))
    given = cell_params(plain), zero_carry(plain), drawn(5, 2)

    def program(measure, cell):
        text = str(jax.make_jaxpr(functools.partial(measure, cell))(*given))
        return re.sub("0x[0-9a-f]+", "", text)  # addresses of functions

    within = tbptt.Stack((tbptt.ClippedCell(plain.cells[0], 1e-3), plain.cells[1]))
    for measure in JITTED:
        want = program(measure, plain)
        assert len(want) > 1000
        assert program(measure, within) == want
        if measure is step_jacobians:
            assert program(measure, tbptt.ClippedCell(plain, 1e-3)) == want


class ClipsItself(tbptt.Elman):
    """A user-defined cell with a custom backward pass."""

    def __call__(self, params, carry, x):
        return super().__call__(params, tbptt.cells.clip_cotangent(carry, 1.0), x)


@each_measure
def test_a_custom_backward_pass_has_no_jacobian(measure):
    cell = ClipsItself(2, 3)
    with pytest.raises(
        TypeError, match="ClipsItself has a custom backward pass .* pass the cell without it"
    ):
        jax.eval_shape(
            functools.partial(measure, cell), cell_params(cell), zero_carry(cell), np.ones((5, 2))
        )


def test_half_precision_is_measured_in_float32():
    half, single = (tbptt.Elman(2, 4, dtype=d) for d in (jnp.float16, jnp.float32))
    params, xs = cell_params(half), drawn(5, 2).astype(jnp.float16)
    given = half, params, zero_carry(half), xs
    for measure in JITTED:  # one function converts the arguments of all of them
        found = jax.eval_shape(functools.partial(measure, *given[:1]), *given[1:])
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    other = tbptt.Elman(2, 4, dtype=jnp.bfloat16)
    given_other = cell_params(other), zero_carry(other), xs.astype(jnp.bfloat16)
    assert jax.eval_shape(functools.partial(step_jacobians, other), *given_other).dtype == "float32"
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    want = JITTED[step_jacobians](single, wide, zero_carry(single), xs.astype(np.float32))
    np.testing.assert_array_equal(JITTED[step_jacobians](*given), want)
    for of in (radius, largest_singular):
        assert of(params.w_h) == of(wide.w_h)


class Shrinking(CountingElman):
    """A cell that returns a carry of another shape."""

    def initial_carry(self, batch_shape=()):
        return {"h": jnp.zeros((*batch_shape, 3))}

    def __call__(self, params, carry, x):
        return {"h": carry["h"][:2]}, carry["h"]


def test_a_cell_that_changes_the_shape_of_its_carry():
    cell = Shrinking()
    with pytest.raises(ValueError, match="Shrinking returned a carry of 2 numbers for one of 3"):
        step_jacobians(cell, None, zero_carry(cell), np.ones((4, 2)))
