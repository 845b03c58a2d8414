"""Lags at which powers end, in every dtype, and the first step and leaf that are not finite."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tbptt.cells import LSTM, DiagonalLinear, Elman, Stack
from tbptt.diagnostics import (
    first_bad_leaf,
    first_non_finite,
    gradient_range,
    last_useful_lag,
    leaf_name,
    overflow_step,
    powers,
    underflow_step,
    where_non_finite,
)
from tests.support.sequences import cell_params, zero_carry

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}


def numpy_powers(w, dtype, steps):
    """Return h_0 .. h_n, multiplied by NumPy until they end."""
    kind = DTYPES[dtype]
    hs = [kind(1)]
    with np.errstate(all="ignore"):
        while len(hs) <= steps:
            hs.append(kind(hs[-1] * kind(w)))
            if not np.isfinite(hs[-1]) or hs[-1] == 0 or hs[-1] == hs[-2]:
                break
    return hs


@pytest.mark.parametrize(
    ("w", "dtype"), [*((1.01, d) for d in DTYPES), (-2.0, "float16"), (1.1, "bfloat16")]
)
def test_overflow_equals_numpy(w, dtype):
    hs = numpy_powers(w, dtype, 100_000)
    assert overflow_step(w, dtype) == (None if np.isfinite(hs[-1]) else len(hs) - 1)
    assert powers(w, dtype, 100_000).stuck == (len(hs) - 1 if hs[-1] == hs[-2] else None)


@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 3.4028234663852886e38), ("float64", np.finfo(float).max)]
)
def test_overflow_of_powers_of_two(dtype, most):
    rounded = float(DTYPES[dtype](1.01))
    assert overflow_step(1.01, dtype) == math.ceil(math.log(most) / math.log(rounded))
    assert overflow_step(2.0, dtype) == round(math.log2(most))
    assert overflow_step(1.01, dtype, max_steps=1000) is None


def test_all_four_dtypes_by_doubling():
    assert [overflow_step(2.0, d) for d in DTYPES] == [16, 128, 128, 1024]
    assert [powers(0.5, d, 100_000).subnormal for d in DTYPES] == [15, 127, 127, 1023]
    assert (
        powers(0.5, "float16", 100_000).zero == 25
    )  # float16 has subnormals; 2^-25 rounds to even
    for dtype, bits in (("float32", 23), ("float64", 52)):  # with or without subnormals
        smallest = -int(np.finfo(dtype).minexp)
        assert underflow_step(0.5, dtype) in (smallest + 1, smallest + bits + 1)


def test_powers_that_round_to_themselves_are_stuck():
    # float16: below 50 units of 2^-24, a change of 1 % rounds to 0, so 0.99^n never foundes 0.
    hs = numpy_powers(0.99, "float16", 5000)
    found = powers(0.99, "float16", 100_000)
    assert found == (None, next(n for n, h in enumerate(hs) if h < 2.0**-14), None, len(hs) - 1)
    assert underflow_step(0.99, "float16") is None
    assert powers(1.0, "float32", 100_000) == powers(-1.0, "float32", 100_000) == (None,) * 4
    assert powers(1.001, "bfloat16", 100_000) == (None, None, None, 1)  # 1.001 is 1 in bfloat16


def test_a_thousand_steps_of_099():
    flushed = math.ceil(math.log(1.1754943508222875e-38) / math.log(float(np.float32(0.99))))
    assert powers(0.99, "float32", 100_000).subnormal == flushed == 8690
    assert underflow_step(0.99, "float32", max_steps=1000) is None
    # 0.99^1000 = 4e-5 changes a float64 parameter; 1e-16, at lag 3655, does not.
    assert (
        last_useful_lag(0.99, "float64", parameter=1.5)
        == math.floor(math.log(2.0**-53) / math.log(0.99))
        == 3655
    )
    assert (
        last_useful_lag(0.99, "float32", parameter=1.5)
        == math.floor(math.log(2.0**-24) / math.log(0.99))
        == 1655
    )
    assert last_useful_lag(0.99, "float64", 1000) is None


@pytest.mark.parametrize(
    ("w", "parameter", "rate", "dtype"),
    [
        *((0.9, 1.5, 1.0, dtype) for dtype in DTYPES),
        (0.9, 1.5, 0.01, "float32"),
        (-0.7, 0.3, 0.1, "float64"),
        (1.2, 2.0, 1.0, "float16"),
    ],
)
def test_last_useful_lag_equals_numpy(w, parameter, rate, dtype):
    kind = DTYPES[dtype]
    g, k = kind(1), 0
    with np.errstate(all="ignore"):
        while True:
            new = kind(kind(parameter) - kind(kind(rate) * g))
            if new == kind(parameter) or not np.isfinite(new):
                break
            g, k = kind(g * kind(w)), k + 1
    assert last_useful_lag(w, dtype, parameter=parameter, rate=rate) == k - 1


def test_no_lag_is_useful():
    assert last_useful_lag(0.9, "float32", rate=1e-9) == -1
    assert last_useful_lag(0.0, "float32") == 0


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "dtype must be floating.*int32", lambda: powers(0.9, "int32", 5)),
        (
            ValueError,
            "max_steps must be at least 1; got 0",
            lambda: overflow_step(0.9, "float32", 0),
        ),
        (
            ValueError,
            "w must be finite in float16; got 70000",
            lambda: underflow_step(70000.0, "float16"),
        ),
        (ValueError, "w must be finite.*nan", lambda: last_useful_lag(math.nan, "float32")),
    ],
)
def test_bad_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()


def scalar(a):
    cell = DiagonalLinear(1, 1)
    return cell, cell_params(cell)._replace(a=np.array([a])), zero_carry(cell)


@pytest.mark.parametrize("a", [0.5, 4.0])
def test_gradients_by_lag_end_where_powers_do(a):
    dtype = "float16"
    cell, params, carry = scalar(a)
    T = 2 * int(math.log(float(ml_dtypes.finfo(DTYPES[dtype]).max)))
    found = gradient_range(
        cell, params, carry, jnp.asarray(np.zeros((T, 1))), jnp.sum, dtype, parameter=1.5
    )
    end = powers(a, dtype, T)
    assert found.largest.shape == (T,) and found.largest[0] == a and found.largest[1] == a * a
    assert (found.overflow, found.zero) == (end.overflow, end.zero)
    assert found.last_useful == last_useful_lag(a, dtype, T, parameter=1.5)


def test_gradient_range_of_an_elman_network_equals_autodiff():
    cell, T = Elman(2, 3), 6
    params, carry = cell_params(cell), zero_carry(cell, (2,))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, 2, 2)))
    found = gradient_range(cell, params, carry, xs, lambda y: jnp.sum(y**2), "float64")

    def loss(carry, params):
        return jnp.sum(jax.lax.scan(functools.partial(cell, params), carry, xs)[1][-1] ** 2)

    want = max(np.max(np.abs(g)) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(carry, params)))
    np.testing.assert_allclose(found.largest[-1], want, rtol=1e-12)
    assert found[1:] == (None, None, None)
    half = gradient_range(cell, params, carry, xs, lambda y: jnp.sum(y**2), "bfloat16").largest
    np.testing.assert_allclose(half, found.largest, rtol=0.2)
    assert not np.array_equal(half, found.largest)


def test_gradient_range_of_bad_input(key):
    cell, params, carry = scalar(jnp.nan)
    found = gradient_range(cell, params, carry, jnp.zeros((3, 1)), jnp.sum, "float32")
    assert found.overflow == 1 and found.last_useful == 0 and np.isnan(found.largest).all()
    cell, params, carry = scalar(0.5)
    found = gradient_range(
        cell, params, carry, jnp.zeros((3, 1)), lambda y: jnp.zeros(()), "float32"
    )
    assert found.zero == 1 and found.largest.tolist() == [0] * 3  # a loss that ignores the carry
    with pytest.raises(
        TypeError,
        match=r"carry\[1\] is int64: derivatives with respect to a carry need floating leaves",
    ):
        gradient_range(
            cell, params, (carry, jnp.zeros((), int)), jnp.zeros((3, 1)), jnp.sum, "float32"
        )
    with pytest.raises(ValueError, match=r"at least one step; got shape \(0, 1\)"):
        gradient_range(cell, params, carry, jnp.zeros((0, 1)), jnp.sum, "float32")
    with pytest.raises(ValueError, match=r"D = DiagonalLinear.input_dim = 1; got shape \(3, 2\)"):
        gradient_range(cell, params, carry, jnp.zeros((3, 2)), jnp.sum, "float32")
    with pytest.raises(ValueError, match=r"carry.h must have the shape \(4, 1\)"):
        gradient_range(cell, params, carry, jnp.zeros((3, 4, 1)), jnp.sum, "float32")


found_first = jax.jit(first_non_finite, static_argnums=0)


def located(cell, params, carry, xs):
    first = found_first(cell, params, carry, xs)
    assert bool(first.found) == (int(first.leaf) >= 0)
    return where_non_finite(first, cell, params, carry, jnp.asarray(xs))


def with_entry(array, at, value):
    array = np.array(array)
    array[at] = value
    return array


def test_the_first_non_finite_value_is_located():
    cell = Stack((LSTM(2, 3), Elman(3, 4)))
    params, carry, xs = (
        cell_params(cell),
        zero_carry(cell, (2,)),
        np.random.default_rng(0).normal(size=(6, 2, 2)),
    )
    assert located(cell, params, carry, xs) == "all finite"
    assert located(cell, params, carry, with_entry(xs, (4, 1, 0), np.inf)) == "step 4: x"
    bad = (params[0], params[1]._replace(w_h=with_entry(params[1].w_h, (0, 0), np.nan)))
    assert located(cell, bad, carry, xs) == "before step 0: params[1].w_h"
    late = (carry[0]._replace(c=with_entry(carry[0].c, (1, 2), -np.inf)), carry[1])
    assert located(cell, params, late, xs) == "before step 0: carry[0].c"


def test_a_diverging_recurrence_is_distinguished_from_bad_input():
    cell, params, carry = scalar(2.0)
    params, carry = jax.tree.map(np.float32, (params, jax.tree.map(lambda leaf: leaf + 1, carry)))
    assert (
        located(cell, params, carry, np.zeros((200, 1), np.float32)) == "step 127: carry.h"
    )  # 2^128
    assert located(cell, params, carry, np.zeros((0, 1), np.float32)) == "all finite"


class OnlyTheOutput(DiagonalLinear):
    """A cell with h = 1 and y = 1 / x, whose carry also holds a counter."""

    def __call__(self, params, carry, x):
        return (carry[0], carry[1] + 1), 1 / x


def test_a_non_finite_output_and_integer_leaves():
    carry = (np.ones((1,)), np.zeros((), int))
    assert located(OnlyTheOutput(1, 1), (), carry, np.array([[1.0], [0.0]])) == "step 1: y"


def test_the_first_bad_leaf_of_a_gradient():
    grads = {"cell": cell_params(Elman(2, 3)), "n": np.zeros((), int)}
    find = jax.jit(first_bad_leaf)
    assert int(find(grads)) == -1 and leaf_name(grads, -1) is None
    cell = grads["cell"]
    bad = {
        **grads,
        "cell": cell._replace(w_x=with_entry(cell.w_x, (1, 1), np.inf), b=cell.b * np.nan),
    }
    assert leaf_name(bad, find(bad)) == "['cell'].w_x"
    assert int(first_bad_leaf(())) == -1
