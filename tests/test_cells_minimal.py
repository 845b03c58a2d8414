"""MinGRU and MinLSTM are their equations, and safe where the equations divide nothing by nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import DiagonalLinear, MinGRU, MinGRUCarry, MinLSTM, MinLSTMCarry
from tbptt.types import AffineCell

D, H = 3, 4
CELLS = [MinGRU(D, H), MinLSTM(D, H), DiagonalLinear(D, H)]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
close = dict(rtol=1e-13, atol=1e-13)


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def by_hand(w_x, b, x, blocks):
    """x w_x + b of unit 1, block by block, number by number."""
    units = [block * H + 1 for block in range(blocks)]
    return [sum(float(x[d]) * float(w_x[d, unit]) for d in range(D)) + float(b[unit]) for unit in units]


def drawn(cell, key, blocks):
    params = cell.init(key)
    return params._replace(b=jnp.linspace(-1.0, 0.8, blocks * H)), jnp.array([0.7, -1.3, 0.4])


def test_min_gru_is_its_equation(key):
    cell = MinGRU(D, H)
    params, x = drawn(cell, key, 2)
    z, n = by_hand(*params, x, 2)
    h = -0.9
    want = (1 - sigmoid(z)) * h + sigmoid(z) * n
    carry, y = cell(params, MinGRUCarry(jnp.full(H, h)), x)
    np.testing.assert_allclose(carry.h[1], want, **close)
    np.testing.assert_array_equal(y, carry.h)


def test_min_lstm_is_its_equation(key):
    cell = MinLSTM(D, H)
    params, x = drawn(cell, key, 3)
    f, i, n = by_hand(*params, x, 3)
    f, i = sigmoid(f), sigmoid(i)
    h = -0.9
    want = f / (f + i) * h + i / (f + i) * n
    carry, y = cell(params, MinLSTMCarry(jnp.full(H, h)), x)
    np.testing.assert_allclose(carry.h[1], want, **close)
    np.testing.assert_array_equal(y, carry.h)


@pytest.mark.parametrize(("make", "blocks"), [(MinGRU, 2), (MinLSTM, 3)])
def test_start(make, blocks, key):
    cell = make(200, 100)
    params = cell.init(key)
    limit = math.sqrt(6 / (200 + 100))  # of one block: D + H, not D + blocks * H
    for w in np.split(np.asarray(params.w_x), blocks, axis=1):
        assert 0.99 * limit < np.max(np.abs(w)) <= limit
    want = np.zeros(200) if make is MinGRU else np.repeat([1.0, 0.0, 0.0], 100)
    np.testing.assert_array_equal(params.b, want)
    if make is MinLSTM:
        np.testing.assert_array_equal(MinLSTM(D, H, forget_bias=2.5).init(key).b, np.repeat([2.5, 0, 0], H))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    ("f", "i", "keep"),
    [(-2000, -2000, 0.5), (2000, 2000, 0.5), (-2000, 2000, 0.0), (2000, -2000, 1.0), (-2001, -2000, None)],
)
def test_min_lstm_gates_at_their_ends(f, i, keep, dtype):
    """Both gates shut is 0 / 0 in the quotient as it is written, and NaN in its gradient long before."""
    cell = MinLSTM(1, 1, dtype=dtype)
    params = cell.init(jax.random.key(0))._replace(b=jnp.array([f, i, 0.3], dtype))
    keep = 1 / (1 + math.e) if keep is None else keep  # log f - log i = -1

    def h(params, h):
        return cell(params, MinLSTMCarry(h), jnp.zeros(1, dtype))[1][0]

    carry = jnp.array([2.0], dtype)
    np.testing.assert_allclose(h(params, carry), keep * 2.0 + (1 - keep) * 0.3, rtol=1e-6)
    grads = jax.grad(h, argnums=(0, 1))(params, carry)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(grads[1], [keep], rtol=1e-6)


def test_min_gru_keeps_the_digits_of_a_slow_decay():
    """1 - sigmoid(20) in float32 has one digit of exp(-20) left."""
    cell = MinGRU(1, 1, dtype=jnp.float32)
    params = cell.init(jax.random.key(0))._replace(b=jnp.array([20.0, 0.0], jnp.float32))
    decay = cell.affine(params, jnp.zeros((1, 1), jnp.float32))[0].h
    np.testing.assert_allclose(decay, [[sigmoid(-20.0)]], rtol=1e-5)


@each_cell
def test_affine_and_outputs_are_the_call(cell, key):
    assert isinstance(cell, AffineCell)
    k_p, k_c, k_x = jax.random.split(key, 3)
    params, xs = cell.init(k_p), jax.random.normal(k_x, (5, 2, D))
    carry = jax.tree.map(lambda leaf: jax.random.normal(k_c, leaf.shape), cell.initial_carry((5, 2)))
    a, b = cell.affine(params, xs)
    new = jax.tree.map(lambda a, h, b: a * h + b, a, carry, b)
    want, ys = cell(params, carry, xs)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, **close), new, want)
    np.testing.assert_allclose(cell.outputs(params, new, xs), ys, **close)
