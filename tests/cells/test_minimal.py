"""MinGRU and MinLSTM against their equations, also where gates saturate."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import (
    DiagonalLinear,
    MinGRU,
    MinGRUCarry,
    MinGRUParams,
    MinLSTM,
    MinLSTMCarry,
    MinLSTMParams,
)
from tbptt.cells.base import AffineCell
from tests.support.problems import problem

D, H = 3, 4
CELLS = [MinGRU(D, H), MinLSTM(D, H), DiagonalLinear(D, H)]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
close = dict(rtol=1e-13, atol=1e-13)


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def pre_activations(w_x, b, x, blocks):
    """Compute x w_x + b of unit 1 for every block, in plain Python."""
    units = [block * H + 1 for block in range(blocks)]
    return [
        sum(float(x[d]) * float(w_x[d, unit]) for d in range(D)) + float(b[unit]) for unit in units
    ]


def drawn(make_params, blocks):
    w_x = np.random.default_rng(0).uniform(-0.9, 0.9, (D, blocks * H))
    return make_params(w_x=w_x, b=np.linspace(-1.0, 0.8, blocks * H)), np.array([0.7, -1.3, 0.4])


def test_min_gru_is_its_equation():
    cell = MinGRU(D, H)
    params, x = drawn(MinGRUParams, 2)
    z, n = pre_activations(*params, x, 2)
    h = -0.9
    want = (1 - sigmoid(z)) * h + sigmoid(z) * n
    carry, y = jax.tree.map(np.asarray, jax.jit(cell)(params, MinGRUCarry(np.full(H, h)), x))
    np.testing.assert_allclose(carry.h[1], want, **close)
    np.testing.assert_array_equal(y, carry.h)


def test_min_lstm_is_its_equation():
    cell = MinLSTM(D, H)
    params, x = drawn(MinLSTMParams, 3)
    f, i, n = pre_activations(*params, x, 3)
    f, i = sigmoid(f), sigmoid(i)
    h = -0.9
    want = f / (f + i) * h + i / (f + i) * n
    carry, y = jax.tree.map(np.asarray, jax.jit(cell)(params, MinLSTMCarry(np.full(H, h)), x))
    np.testing.assert_allclose(carry.h[1], want, **close)
    np.testing.assert_array_equal(y, carry.h)


@pytest.mark.parametrize(("make", "blocks"), [(MinGRU, 2), (MinLSTM, 3)])
def test_initial_params(make, blocks, key):
    cell = make(200, 100)
    params = jax.jit(cell.init)(key)
    limit = math.sqrt(6 / (200 + 100))  # of one block: D + H, not D + blocks * H
    for w in np.split(np.asarray(params.w_x), blocks, axis=1):
        assert 0.99 * limit < np.max(np.abs(w)) <= limit
    want = np.zeros(200) if make is MinGRU else np.repeat([1.0, 0.0, 0.0], 100)
    np.testing.assert_array_equal(params.b, want)
    if make is MinLSTM:
        np.testing.assert_array_equal(
            jax.jit(MinLSTM(D, H, forget_bias=2.5).init)(key).b, np.repeat([2.5, 0, 0], H)
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_min_lstm_with_saturated_gates(dtype):
    """Two closed gates give 0 / 0 in the quotient as written, and NaN in its gradient."""
    cell = MinLSTM(1, 1, dtype=dtype)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def h_and_slopes(params, h):
        return cell(params, MinLSTMCarry(h), jnp.zeros(1, dtype))[1][0]

    ratio = 1 / (1 + math.e)  # log f - log i = -1
    ends = [
        (-2000, -2000, 0.5),
        (2000, 2000, 0.5),
        (-2000, 2000, 0.0),
        (2000, -2000, 1.0),
        (-2001, -2000, ratio),
    ]
    for f, i, keep in ends:
        params = MinLSTMParams(w_x=np.full((1, 3), 0.5, dtype), b=np.array([f, i, 0.3], dtype))
        h, grads = h_and_slopes(params, np.array([2.0], dtype))
        np.testing.assert_allclose(h, keep * 2.0 + (1 - keep) * 0.3, rtol=1e-6)
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
        np.testing.assert_allclose(grads[1], [keep], rtol=1e-6)


def test_min_gru_precision_of_a_slow_decay():
    """In float32, 1 - sigmoid(20) has one correct digit of exp(-20)."""
    cell = MinGRU(1, 1, dtype=jnp.float32)
    params = MinGRUParams(w_x=np.full((1, 2), 0.5, np.float32), b=np.array([20.0, 0.0], np.float32))
    decay = jax.jit(cell.affine)(params, np.zeros((1, 1), np.float32))[0].h
    np.testing.assert_allclose(decay, [[sigmoid(-20.0)]], rtol=1e-5)


@each_cell
def test_affine_and_outputs_equal_the_call(cell):
    assert isinstance(cell, AffineCell)
    params, carry, xs, _ = problem(cell, (5, 2), 1)

    @jax.jit
    def both(params, carry, xs):
        a, b = cell.affine(params, xs)
        new = jax.tree.map(lambda a, h, b: a * h + b, a, carry, b)
        return (new, cell.outputs(params, new, xs)), cell(params, carry, xs)

    got, want = both(params, carry, np.asarray(xs)[0])
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, **close), got, want)
