"""What the tests of policies for bad numbers share: gradients with one of them in any leaf, and jitted updates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import LSTM
from tbptt.objectives import init_params

CELL, READOUT = LSTM(2, 3), nn.Dense(1, param_dtype=jnp.float64)
PARAMS = init_params(jax.random.key(0), CELL, READOUT)
LEAVES = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(PARAMS)]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
ADAM = optax.adam(1e-2, eps=1e-3)  # the default eps, 1e-8, is 0 in float16, and a zero gradient then 0 / 0
VALUES = [(1e30, 1), (1e-30, 1), (0.0, 1), (np.inf, 1), (-np.inf, 1), (np.nan, 1), (2e19, 4), (300.0, 4)]


def with_value(tree, leaf, value, entries=1):
    leaves, structure = jax.tree.flatten(tree)
    flat = leaves[leaf].reshape(-1).at[:entries].set(value)
    return jax.tree.unflatten(structure, [*leaves[:leaf], flat.reshape(leaves[leaf].shape), *leaves[leaf + 1 :]])


def cast(dtype):
    return jax.tree.map(lambda p: (p + 0.1).astype(dtype), PARAMS)


def assert_equal(got, want):
    def same(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))

    jax.tree.map(same, got, want)


def finite(tree):
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def jitted(optimizer):
    @jax.jit
    def step(params, state, g):
        updates, state = optimizer.update(g, state, params)
        return optax.apply_updates(params, updates), state

    return step
