"""The scan engine is the plain loop of its docstring, in values and gradients, however it is cut into segments."""

import functools
import inspect

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, GRUResetBefore, MinGRU, MinLSTM, Stack
from tbptt.unroll import Segments, unroll
from tests.problems import B, D, H, T, assert_same, everything, looped, problem

CELLS = [
    Elman(D, H, gain=1.2),
    GRU(D, H),
    GRUResetBefore(D, H),
    LSTM(D, H),
    DiagonalLinear(D, H),
    MinGRU(D, H),
    MinLSTM(D, H),
    Stack((LSTM(D, 5), Elman(5, H))),
]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)


@functools.cache
def unrolled(cell, use, reverse=False, batch_shape=(B,)):
    """`everything` of unroll on `problem`."""
    params, carry, xs, given = problem(cell, batch_shape)
    given = {name: given[name] for name in use.split()}
    return everything(lambda *a: unroll(cell, *a, **given, reverse=reverse), params, carry, xs)


@each_cell
@pytest.mark.parametrize(("use", "reverse"), [("", 0), ("resets", 0), ("mask", 0), ("resets mask", 0), ("resets mask", 1)])
def test_is_the_plain_loop(cell, use, reverse):
    params, carry, xs, given = problem(cell)
    want = looped(cell, params, carry, xs, **{name: given[name] for name in use.split()}, reverse=bool(reverse))
    assert_same(unrolled(cell, use, bool(reverse)), want)
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want[1][0])) > 1e-3  # the gradient is alive


@each_cell
def test_batched_is_vmapped(cell):
    params, carry, xs, given = problem(cell, (3, 2))

    @jax.jit
    def both(params, carry, xs, resets, mask):
        one = lambda c, x, r, m: unroll(cell, params, c, x, resets=r, mask=m)  # noqa: E731
        two = jax.vmap(jax.vmap(one, (0, 1, 1, 1), (0, 1)), (0, 1, 1, 1), (0, 1))
        return one(carry, xs, resets, mask), two(carry, xs, resets, mask)

    assert_same(*both(params, carry, xs, **given))


@each_cell
@pytest.mark.parametrize("remat", [None, Segments(4)], ids=["plain", "segments"])
def test_nan_padding_changes_nothing(cell, remat):
    params, carry, xs, _ = problem(cell, ())
    real = np.sort(np.random.default_rng(0).permutation(T + 5)[: T - 3])  # interspersed among the padding, ends included
    real = np.concatenate([real, [T + 6, T + 7, T + 9]])  # and a padded tail
    mask = np.zeros(T + 12, bool)
    mask[real] = True

    def padded(params, carry, xs):
        holes = jnp.full((T + 12, D), jnp.nan).at[real].set(xs)
        carry, ys = unroll(cell, params, carry, holes, mask=mask, remat=remat)
        return carry, ys[real], ys[~mask]

    (last, ys, at_holes), grads = everything(padded, params, carry, xs)
    assert_same(((last, ys), grads), unrolled(cell, "", batch_shape=()))
    assert bool(jnp.all(at_holes == 0))


@each_cell
def test_no_gradient_crosses_a_reset(cell):
    params, carry, xs, _ = problem(cell)
    resets = jnp.zeros((T, B), bool).at[4].set(True)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient_of_what_follows(carry, xs, resets):
        last, ys = unroll(cell, params, carry, xs, resets=resets)
        return jnp.sum(ys[4:] ** 2) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))

    to_carry, to_xs = gradient_of_what_follows(carry, xs, resets)
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves((to_carry, to_xs[:4])))
    open_carry, open_xs = gradient_of_what_follows(carry, xs, jnp.zeros_like(resets))
    assert all(bool(jnp.all(leaf != 0)) for leaf in jax.tree.leaves((open_carry, open_xs)))


@each_cell
@pytest.mark.parametrize("remat", [None, Segments(), Segments(4)], ids=["plain", "root", "four"])
def test_no_steps_return_the_carry(cell, remat):
    params, carry, xs, given = problem(cell)
    mask = jnp.ones((T, B), bool).at[:, 1].set(False)  # a lane that does not exist at all, resets there or not

    @jax.jit
    def both(params, carry, xs):
        run = functools.partial(unroll, cell, params, carry, remat=remat)
        return run(xs[:0]), run(xs, resets=given["resets"], mask=mask)

    (none, nothing), (last, ys) = both(params, carry, xs)
    assert_same((none, nothing.shape), (carry, (0, B, H)), 0)
    assert_same(jax.tree.map(lambda a: a[1], last), jax.tree.map(lambda a: a[1], carry), 0)
    assert bool(jnp.all(ys[:, 1] == 0)) and bool(jnp.all(ys[:, 0] != 0))


@each_cell
@pytest.mark.parametrize("batch_shape", [(0,), (3, 0)], ids=str)
def test_no_lanes_are_no_outputs_and_no_gradient(cell, batch_shape):
    params, carry, xs, flags = problem(cell, batch_shape)
    (last, ys), (d_params, d_carry, d_xs) = everything(lambda *a: unroll(cell, *a, **flags), params, carry, xs)
    assert ys.shape == (T, *batch_shape, cell.hidden_dim) and d_xs.shape == xs.shape
    assert jax.tree.map(jnp.shape, last) == jax.tree.map(jnp.shape, d_carry) == jax.tree.map(jnp.shape, carry)
    assert all(not leaf.any() for leaf in jax.tree.leaves(d_params))


@each_cell
@pytest.mark.parametrize("remat", [Segments(), Segments(2 * T), Segments(4)], ids=["root", "all", "four"])
def test_segments_change_nothing(cell, remat):
    """T = 7: 3 + 3 + 1, 7, 4 + 3. Forward and in reverse in turns: each cell and each remat meets both."""
    params, carry, xs, given = problem(cell)
    reverse = bool((CELLS.index(cell) + (remat.length == 4)) % 2 == 0)
    cut = everything(lambda *a: unroll(cell, *a, **given, reverse=reverse, remat=remat), params, carry, xs)
    assert_same(cut, unrolled(cell, "resets mask", reverse))


def test_segments_save_memory():
    cell = LSTM(D, 64)
    params, carry = cell.init(jax.random.key(0)), cell.initial_carry((8,))
    xs = jnp.ones((1024, 8, D))

    def temp_bytes(remat):
        grad = jax.jit(jax.grad(lambda p: jnp.sum(unroll(cell, p, carry, xs, remat=remat)[0].h)))
        return grad.lower(params).compile().memory_analysis().temp_size_in_bytes

    plain, root = temp_bytes(None), temp_bytes(Segments())
    assert root < plain / 4, (root, plain)
    assert temp_bytes(Segments(1024)) > 2 * root  # one segment as long as the sequence saves nothing


@each_cell
def test_gradient_is_that_of_finite_differences(cell):
    params, carry, xs, given = problem(cell, steps=6)
    flat, back = jax.flatten_util.ravel_pytree((params, carry))

    def loss(flat):
        last, ys = unroll(cell, *back(flat), xs, **given)
        return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))

    eps, eye = 1e-4, np.eye(flat.size)
    at = jax.jit(jax.vmap(loss))  # five points: the error falls as eps^4, so 1e-10 is within reach of float64
    one, two = at(flat + eps * eye) - at(flat - eps * eye), at(flat + 2 * eps * eye) - at(flat - 2 * eps * eye)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(flat), (8 * one - two) / (12 * eps), rtol=1e-9, atol=1e-10)


@each_cell
def test_recur_after_inputs_is_the_call(cell):
    params, carry, xs, _ = problem(cell)
    zs = cell.inputs(params, xs)  # all steps at once
    for t in range(T):
        got = cell.recur(params, carry, jax.tree.map(lambda a, t=t: a[t], zs))
        assert_same(got, cell(params, carry, xs[t]))
        carry = got[0]


class Forgetful(Elman):
    """A user's cell gone wrong: it returns a carry of another structure."""

    def __call__(self, params, carry, x):
        return (carry.h,), carry.h


CELL = LSTM(D, H)
PARAMS, CARRY, XS = CELL.init(jax.random.key(0)), CELL.initial_carry((B,)), jnp.ones((T, B, D))
F32 = LSTM(D, H, dtype=jnp.float32)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, r"xs must be floating.*int.*embed integer symbols", {"xs": jnp.ones((T, B, D), int)}),
        (ValueError, r"xs must be .*LSTM.input_dim = 3; got shape \(7, 2, 4\)", {"xs": jnp.ones((T, B, 4))}),
        (ValueError, r"xs must be \[T, \*batch, D\].*got shape \(3,\)", {"xs": jnp.ones((D,))}),
        (TypeError, r"resets must be booleans.*float64: use resets > 0", {"resets": jnp.ones((T, B))}),
        (TypeError, r"mask must be booleans.*int.*: use mask > 0", {"mask": jnp.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(7, 2\); got \(7,\)", {"resets": jnp.ones((T,), bool)}),
        (ValueError, r"mask must have .* \(7, 2\); got \(2, 7\)", {"mask": jnp.ones((B, T), bool)}),
        (ValueError, r"carry must have the structure", {"carry": CARRY.h}),
        (
            ValueError,
            r"carry\.h must be .*\[2, 4\]; got .*\[4\]\..*initial_carry\(\(2,\)\)",
            {"carry": CELL.initial_carry()},
        ),
        (ValueError, r"carry\.c must be float64.*; got float32", {"carry": CARRY._replace(c=F32.initial_carry((B,)).c)}),
        (ValueError, r"carry that LSTM returned\.h must be float32.*; got float64.*xs is float64", {"cell": F32}),
        (ValueError, r"carry that Forgetful returned must have the structure", {"cell": Forgetful(D, H)}),
    ],
)
def test_errors_name_what_is_wrong(error, words, change):
    cell = change.pop("cell", CELL)
    given = {"params": cell.init(jax.random.key(0)), "carry": cell.initial_carry((B,)), "xs": XS} | change
    # Only the library's own message counts: jaxtyping's hook of the tests would speak first.
    with pytest.raises(error, match=words):
        inspect.unwrap(unroll)(cell, **given)


def test_segments_need_a_length():
    with pytest.raises(ValueError, match=r"Segments.length must be at least 1 step.*got 0"):
        Segments(0)
