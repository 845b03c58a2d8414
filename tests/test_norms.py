"""The global norm of anything: no overflow, no underflow, no NaN that was not there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt import global_norm
from tbptt.norms import measure, usual_measure

assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=lambda d: d.__name__)
def test_the_norm_at_any_size_by_either_way(dtype):
    """Plain squares where they serve, scaled ones beyond: right on both sides of where they change."""
    limits = jnp.finfo(dtype)
    exponents = np.arange(limits.minexp + 32, limits.maxexp - 8, 3)
    parts = np.ones((3, 5)), np.linspace(1e-3, 2, 7), 1e-9 * np.ones(4)
    used = []
    for exponent in exponents:
        # Extended precision: neither these squares nor their sum leave its range.
        long = [a.astype(np.longdouble) * np.longdouble(2.0) ** int(exponent) for a in parts]
        tree = [jnp.asarray(a.astype(dtype)) for a in long]
        want = np.sqrt(sum(np.sum(np.asarray(a, np.longdouble) ** 2) for a in tree))
        seen = jax.jit(usual_measure)(tree)
        rounding = 20 * float(limits.eps)
        np.testing.assert_allclose(float(seen.norm) / want, 1, rtol=rounding)
        np.testing.assert_allclose(float(measure(tree).norm) / want, 1, rtol=rounding)
        np.testing.assert_allclose(float(seen.size) / float(seen.down) / want, 1, rtol=rounding)
        used.append(int(seen.exponent) == 0)
    # Scaled, plain, scaled; an exponent of 0 by chance is among the plain ones.
    assert not used[0] and not used[-1] and np.count_nonzero(np.diff(used)) == 2 and np.mean(used) > 0.3


def test_the_norm_of_constants():
    """XLA knows them while it compiles, and would square them before they are scaled."""
    for value in (2e19, 1e-30):
        leaf = np.full(4, value, np.float32)
        np.testing.assert_allclose(jax.jit(lambda leaf=leaf: measure(leaf).norm)(), 2 * value, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(lambda leaf=leaf: global_norm(leaf))(), 2 * value, rtol=1e-6)


def test_global_norm_of_anything():
    mixed = {
        "a": jnp.full(2, 3e38, jnp.bfloat16),
        "b": jnp.full(3, 6e4, jnp.float16),
        "c": jnp.full((2, 2), 2e19, jnp.float32),
        "d": jnp.full(1, 1e300),
        "n": jnp.arange(3),
    }
    assert global_norm(mixed).dtype == jnp.float64 and float(global_norm(mixed)) == 1e300
    del mixed["d"]
    assert global_norm(mixed).dtype == jnp.float32 and float(global_norm(mixed)) == float(jnp.finfo(jnp.float32).max)
    del mixed["a"]
    np.testing.assert_allclose(jax.jit(global_norm)(mixed), 4e19, rtol=1e-7)
    for value in (1e-37, 1e-30, 1.0, 2e19, 1e38):  # 1e-37: the smallest numbers that no device reads as zero
        np.testing.assert_allclose(jax.jit(global_norm)(jnp.full(9, value, jnp.float32)), 3 * value, rtol=1e-6)
    for value in (1e-300, 1e300):
        np.testing.assert_allclose(global_norm(jnp.full(9, value)), 3 * value, rtol=1e-14)
    complex_leaf = jnp.array([3 + 4j, 12j], jnp.complex64)
    assert float(global_norm(complex_leaf)) == float(measure(complex_leaf).norm) == 13
    assert float(global_norm({})) == float(global_norm(jnp.zeros(3))) == float(global_norm(jnp.zeros((0, 2)))) == 0
    assert np.isinf(global_norm((jnp.array([1.0, -jnp.inf]), jnp.full(2, 1e30))))
    assert np.isnan(global_norm((jnp.array([1.0, jnp.inf]), jnp.array(jnp.nan))))
    assert_equal(jax.grad(global_norm)(jnp.zeros(3)), jnp.zeros(3))
    for size in (1.0, 1e30):
        g = jnp.array([3.0, -4.0], jnp.float32) * size
        np.testing.assert_allclose(jax.grad(global_norm)(g), [0.6, -0.8], rtol=1e-6)
