"""The global norm: no overflow, no underflow, and NaN only from NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.numerics import fast_measure, measure
from tbptt.optim import global_norm

assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


both = jax.jit(lambda tree: (fast_measure(tree), measure(tree)))
norms = jax.jit(
    lambda trees: [global_norm(tree) for tree in trees]
)  # of many trees at once: one program


@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.exhaustive)],
    ids=["float32", "float64"],
)
def test_the_norm_at_any_size_by_either_way(dtype):
    """Plain squares in the safe range, scaled ones beyond; both are correct at the transition."""
    limits = jnp.finfo(dtype)
    exponents = np.arange(limits.minexp + 32, limits.maxexp - 8, 3)
    parts = np.ones((3, 5)), np.linspace(1e-3, 2, 7), 1e-9 * np.ones(4)
    used = []
    for exponent in exponents:
        # Extended precision: neither these squares nor their sum leave its range.
        long = [a.astype(np.longdouble) * np.longdouble(2.0) ** int(exponent) for a in parts]
        tree = [a.astype(dtype) for a in long]
        want = np.sqrt(sum(np.sum(np.asarray(a, np.longdouble) ** 2) for a in tree))
        seen, scaled = both(tree)
        rounding = 20 * float(limits.eps)
        np.testing.assert_allclose(float(seen.norm) / want, 1, rtol=rounding)
        np.testing.assert_allclose(float(scaled.norm) / want, 1, rtol=rounding)
        np.testing.assert_allclose(float(seen.size) / float(seen.down) / want, 1, rtol=rounding)
        used.append(int(seen.exponent) == 0)
    # Scaled, plain, scaled; an exponent of 0 by chance is among the plain ones.
    assert (
        not used[0]
        and not used[-1]
        and np.count_nonzero(np.diff(used)) == 2
        and np.mean(used) > 0.3
    )


def test_the_norm_of_constants():
    """XLA folds constants, and would square them before they are scaled."""
    values = 2e19, 1e-30
    leaves = [np.full(4, value, np.float32) for value in values]
    found = jax.jit(lambda: [(measure(leaf).norm, global_norm(leaf)) for leaf in leaves])()
    np.testing.assert_allclose(found, [[2 * value] * 2 for value in values], rtol=1e-6)


def test_global_norm_of_anything():
    mixed = {
        "a": np.full(2, 3e38, jnp.bfloat16),
        "b": np.full(3, 6e4, np.float16),
        "c": np.full((2, 2), 2e19, np.float32),
        "d": np.full(1, 1e300),
        "n": np.arange(3),
    }
    without_d = {name: leaf for name, leaf in mixed.items() if name != "d"}
    without_both = {name: leaf for name, leaf in without_d.items() if name != "a"}
    small, large = (
        (1e-37, 1e-30, 1.0, 2e19, 1e38),
        (1e-300, 1e300),
    )  # 1e-37: no device reads smaller numbers as zero
    everything, wide, single, *rest = norms(
        [mixed, without_d, without_both]
        + [np.full(9, value, np.float32) for value in small]
        + [np.full(9, value) for value in large]
        + [{}, np.zeros(3), np.zeros((0, 2))]
        + [
            (np.array([1.0, -np.inf]), np.full(2, 1e30)),
            (np.array([1.0, np.inf]), np.array(np.nan)),
        ]
    )
    assert everything.dtype == jnp.float64 and float(everything) == 1e300
    assert wide.dtype == jnp.float32 and float(wide) == float(jnp.finfo(jnp.float32).max)
    np.testing.assert_allclose(single, 4e19, rtol=1e-7)
    np.testing.assert_allclose(rest[:5], 3 * np.array(small), rtol=1e-6)
    np.testing.assert_allclose(rest[5:7], 3 * np.array(large), rtol=1e-14)
    assert [float(norm) for norm in rest[7:10]] == [0, 0, 0]
    assert np.isinf(rest[10]) and np.isnan(rest[11])


def test_global_norm_of_complex_numbers_and_its_gradient():
    complex_leaf = np.array([3 + 4j, 12j], np.complex64)
    assert [
        float(norm) for norm in jax.jit(lambda a: (global_norm(a), measure(a).norm))(complex_leaf)
    ] == [13, 13]
    slope = jax.jit(jax.grad(global_norm))
    assert_equal(slope(np.zeros(3, np.float32)), np.zeros(3))
    for size in (1.0, 1e30):
        np.testing.assert_allclose(
            slope(np.array([3.0, -4.0, 0.0], np.float32) * size), [0.6, -0.8, 0], rtol=1e-6
        )
