"""ClippedCell equals its cell forward, and a reverse loop with clipping backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, ClippedCell, DiagonalLinear, Elman, Stack, clip_cotangent
from tbptt.cells.base import SplitCell
from tbptt.diagnostics import gradient_by_lag
from tbptt.unroll import plain_unroll, unroll
from tests.optim.test_clipping import assert_equal, flat
from tests.support.sequences import cell_params, zero_carry

ELMAN, STACK = Elman(2, 4, gain=3.0), Stack((GRU(2, 4), LSTM(4, 3)))
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)
XS = np.random.default_rng(2).normal(size=(12, 3, 2))


def loss_of(cell, step_weights=None, run=unroll):
    def loss(params, carry, xs):
        carry, ys = run(cell, params, carry, xs)
        weights = jnp.ones(len(xs)) if step_weights is None else step_weights
        return jnp.sum(weights[:, None, None] * jnp.sin(ys)) + 0.1 * sum(
            map(jnp.sum, jax.tree.leaves(carry))
        )

    return loss


@pytest.mark.parametrize("cell", [LSTM(2, 4), exhaustive(STACK)], ids=["lstm", "stack"])
def test_clipped_cell_equals_the_cell_forward_and_at_infinity(cell):
    params, carry = cell_params(cell), zero_carry(cell, (3,))
    clipped, never = ClippedCell(cell, 1e-3), ClippedCell(cell, float("inf"))
    assert isinstance(clipped, SplitCell) and hash(clipped) == hash(ClippedCell(cell, 1e-3))

    @jax.jit
    def all_of(*given):
        runs = unroll(clipped, *given), plain_unroll(cell, *given)
        losses = loss_of(cell, run=plain_unroll), loss_of(never), loss_of(clipped)
        return runs, [jax.grad(loss, argnums=(0, 1, 2))(*given) for loss in losses]

    (ours, theirs), (plain, at_infinity, tight) = all_of(params, carry, XS)
    assert_equal(ours, theirs)

    @jax.jit
    def split_step(params, carry, x):
        recur = lambda c: clipped.recur(params, c, clipped.inputs(params, x))  # noqa: E731
        return recur(carry), cell(params, carry, x), jax.grad(lambda c: jnp.sum(recur(c)[1]))(carry)

    got, want, by_carry = split_step(params, carry, XS[0])
    assert_equal(got, want)
    by_carry = jax.tree.map(np.asarray, by_carry)
    norms = np.sqrt(sum(np.sum(np.square(leaf), axis=-1) for leaf in jax.tree.leaves(by_carry)))
    np.testing.assert_allclose(norms, 1e-3, rtol=1e-12)  # clipped in the split step too
    assert_equal(at_infinity, plain)
    assert np.max(np.abs(flat(tight) - flat(plain))) > 1e-3


@functools.cache
def pulled(cell):
    """Return a compiled step and its compiled pullback."""

    def pull(params, carry, x, by_carry, by_y):
        return jax.vjp(lambda p, c: cell(p, c, x), params, carry)[1]((by_carry, by_y))

    return jax.jit(cell), jax.jit(pull)


@pytest.mark.parametrize(
    ("cell", "max_norm"), [(LSTM(2, 4), 0.3), exhaustive(ELMAN, 3.0)], ids=["lstm", "elman"]
)
def test_clipped_cell_equals_a_reverse_loop_with_clipping(cell, max_norm):
    params, carry = cell_params(cell), zero_carry(cell, (3,))
    weights = np.linspace(-1, 1, len(XS))
    got = jax.jit(jax.grad(loss_of(ClippedCell(cell, max_norm), weights)))(params, carry, XS)

    (step, pull), steps, state = pulled(cell), [], carry
    for x, weight in zip(XS, weights, strict=True):
        entering, (state, y) = state, step(params, state, x)
        steps.append((entering, x, weight * np.cos(y)))
    total, clips = jax.tree.map(np.zeros_like, params), 0
    back = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1), state)
    for entering, x, by_y in reversed(steps):
        by_params, by_carry = jax.tree.map(np.asarray, pull(params, entering, x, back, by_y))
        total = jax.tree.map(np.add, total, by_params)
        # [B]
        norms = np.sqrt(sum(np.sum(np.square(leaf), axis=-1) for leaf in jax.tree.leaves(by_carry)))
        factor = np.minimum(1, max_norm / norms)
        clips += np.sum(factor < 1)
        back = jax.tree.map(lambda leaf, f=factor: leaf * f[:, None], by_carry)
    assert clips > 0 or max_norm == 3.0
    np.testing.assert_allclose(flat(got), flat(total), rtol=1e-10, atol=1e-12)


def test_gradient_by_lag_is_bounded_on_an_exploding_cell():
    # W_h is 1.5 times orthogonal: 1.5^k exactly.
    cell = Elman(2, 4, activation=jnp.positive, gain=1.5)
    given = cell_params(cell), zero_carry(cell, (3,)), np.zeros((400, 3, 2))

    def last_loss(y):
        return jnp.sum(y[..., 0] * jnp.array([1.0, 1e-80, 1e300]))

    measure = jax.jit(lambda *given: gradient_by_lag(ClippedCell(cell, 10.0), *given, last_loss))
    plain, bounded = 1.5 ** np.arange(1, 401), np.asarray(measure(*given))
    assert np.max(bounded) <= 10 * (1 + 1e-12)
    # Batch elements are clipped separately; the square of 1e300 overflows, and 1e-80 is not
    # clipped.
    np.testing.assert_allclose(bounded[:, 0], np.minimum(plain, 10), rtol=1e-9)
    np.testing.assert_allclose(bounded[:, 2], 10, rtol=1e-9)
    np.testing.assert_allclose(bounded[:10, 1], 1e-80 * plain[:10], rtol=1e-9)


def test_clip_cotangent_of_any_tree():
    tree = {"h": np.ones((2, 3)), "c": np.ones((2, 2, 2)), "steps": np.arange(2)}
    d = {"h": np.full((2, 3), 2e200), "c": np.full((2, 2, 2), 2e200)}
    d["c"][1] = np.nan

    @jax.jit
    def there_and_back(tree, d):
        out, pull = jax.vjp(lambda t: clip_cotangent(t, 1.0, 1), tree)
        (back,) = pull(d | {"steps": np.zeros(2, jax.dtypes.float0)})
        return out, {"h": back["h"], "c": back["c"]}

    out, back = jax.tree.map(np.asarray, there_and_back(tree, d))
    assert_equal(out, tree)
    norm = np.sqrt(7)
    np.testing.assert_allclose(back["h"][0], 1 / norm)
    np.testing.assert_allclose(back["c"][0], 1 / norm)
    assert_equal((back["h"][1], back["c"][1]), (d["h"][1], d["c"][1]))  # NaN is unchanged
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda h: clip_cotangent(h, 1.0), (1.0,), (1.0,))


@pytest.mark.exhaustive
def test_clipped_cell_within_a_stack_and_without_batch():
    inner = ClippedCell(DiagonalLinear(2, 3), 0.1)
    stack, plain = Stack((inner, ClippedCell(Elman(3, 2), 0.1))), Stack((inner.cell, Elman(3, 2)))
    of_plain, params = jax.jit(lambda key: (plain.init(key), stack.init(key)))(jax.random.key(0))
    assert_equal(of_plain, params)
    slopes = jax.jit(jax.grad(loss_of_sum(stack)))
    one = flat(slopes(params, zero_carry(stack), np.ones((5, 2))))
    got = flat(slopes(params, zero_carry(stack, (2, 3)), np.ones((5, 2, 3, 2))))
    # Every batch element is clipped separately.
    np.testing.assert_allclose(got, 6 * one, rtol=1e-12, atol=1e-14)


def loss_of_sum(cell):
    return lambda params, carry, xs: jnp.sum(unroll(cell, params, carry, xs)[1])
