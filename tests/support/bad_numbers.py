"""Functions for the tests of policies on non-finite numbers: such gradients, and jitted updates."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import LSTM
from tbptt.losses.sequence import init_params

CELL, READOUT = LSTM(2, 3), nn.Dense(1, param_dtype=jnp.float64)
_SHAPES = jax.eval_shape(lambda: init_params(jax.random.key(0), CELL, READOUT))
_RANDOM = np.random.default_rng(0)
PARAMS = jax.tree.map(lambda a: 0.5 * _RANDOM.normal(size=a.shape), _SHAPES)
LEAVES = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(PARAMS)]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
# float32 by default, the other two in exhaustive tests
one_dtype = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(d, id=d.__name__, marks=[pytest.mark.exhaustive] * (d != jnp.float32))
        for d in DTYPES
    ],
)
ADAM = optax.adam(
    1e-2, eps=1e-3
)  # the default eps, 1e-8, is 0 in float16, and a zero gradient then 0 / 0
VALUES = [
    (1e30, 1),
    (1e-30, 1),
    (0.0, 1),
    (np.inf, 1),
    (-np.inf, 1),
    (np.nan, 1),
    (2e19, 4),
    (300.0, 4),
]


def linear_loss(params, carry, batch):
    """A loss with a gradient for every leaf of the parameters, and no carry."""
    others = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
    outputs = batch.inputs @ params.cell.w_x
    return jnp.sum((outputs + others - batch.targets) ** 2), carry


def with_value(tree, leaf, value, entries=1):
    leaves, structure = jax.tree.flatten(jax.tree.map(np.array, tree))
    with np.errstate(over="ignore"):
        leaves[leaf].reshape(-1)[:entries] = value
    return jax.tree.unflatten(structure, leaves)


def cast(dtype, scale=1.0):
    """Return parameters of a dtype, or scaled ones as gradients."""
    return jax.tree.map(
        lambda p: ((p + 0.1).astype(dtype) * np.asarray(scale, dtype)).astype(dtype), PARAMS
    )


def assert_equal(got, want):
    def same(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))

    jax.tree.map(same, got, want)


def finite(tree):
    return all(
        bool(np.all(np.isfinite(np.asarray(leaf, np.float64)))) for leaf in jax.tree.leaves(tree)
    )


def started(optimizer, params):
    return jax.jit(optimizer.init)(params)


def jitted(optimizer):
    @jax.jit
    def step(params, state, g):
        updates, state = optimizer.update(g, state, params)
        return optax.apply_updates(params, updates), state

    return step


def updating(optimizer):
    """Return compiled `init` and `update`."""
    return jax.jit(optimizer.init), jax.jit(functools.partial(optimizer.update))
