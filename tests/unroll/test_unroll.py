"""`unroll` equals the plain loop of its docstring, in values and gradients, for every plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, GRUResetBefore, MinGRU, MinLSTM, Stack
from tbptt.unroll import Segments, unroll
from tests.support.problems import (
    B,
    D,
    H,
    T,
    assert_same,
    problem,
    reference_loop,
    scalar_loss,
    values_and_gradients,
    with_gradients,
)

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
RESETS_AND_MASK = ("resets", "mask")


def cells(*types, marks=()):
    """Return parameters of the cells of these types, in the order of CELLS."""
    return [
        pytest.param(cell, id=type(cell).__name__, marks=marks)
        for cell in CELLS
        if type(cell) in types
    ]


# The cases of `unroll`: a hand-written backward pass, none, and layers.
one_of_each = pytest.mark.parametrize("cell", cells(LSTM, DiagonalLinear, Stack))
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)
_, _, _, LSTM_CELL, DIAGONAL, MIN_GRU, _, STACK = CELLS


def unrolled(cell, reverse=False, remat=None):
    """Return a compiled function of params, carry, xs and flags; its loss is of `counted` ys."""
    return _unrolled(cell, reverse, remat)


@functools.cache
def _unrolled(cell, reverse, remat):
    def run(params, carry, xs, counted, **flags):
        last, ys = unroll(cell, params, carry, xs, reverse=reverse, remat=remat, **flags)
        return last, jnp.where(counted[..., None], ys, 0)

    compiled = with_gradients(run)
    everywhere = np.ones((T, B), bool)
    return lambda *args, counted=everywhere, **flags: compiled(*args, counted=counted, **flags)


NO_RESETS, ALL_STEPS = np.zeros((T, B), bool), np.ones((T, B), bool)


def flags_of(given, use):
    """Return the flags in `use`; the others have no effect, so that all uses share one program."""
    return {"resets": NO_RESETS, "mask": ALL_STEPS} | {
        name: np.asarray(given[name]) for name in use
    }


def nan_at_masked(xs, mask):
    """Return xs with NaN at masked steps."""
    return np.where(np.asarray(mask)[..., None], xs, np.nan)


def alive(grads):
    return min(np.max(np.abs(g)) for g in jax.tree.leaves(grads)) > 1e-3


@pytest.mark.parametrize(
    ("cell", "reverse"),
    [
        *((cell, False) for cell in CELLS if type(cell) in (Elman, GRU, LSTM, DiagonalLinear)),
        *(exhaustive(cell, False) for cell in CELLS if type(cell) in (MinGRU, MinLSTM)),
        exhaustive(CELLS[2], False),
        (STACK, False),
        (LSTM_CELL, True),
        (DIAGONAL, True),
        exhaustive(STACK, True),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else type(value).__name__,
)
def test_equals_the_reference_loop(cell, reverse):
    params, carry, xs, given = problem(cell)
    for use in ((), ("resets",), ("mask",), RESETS_AND_MASK):
        flags = flags_of(given, use)
        got = unrolled(cell, reverse)(params, carry, nan_at_masked(xs, flags["mask"]), **flags)
        want = reference_loop(cell, params, carry, xs, **flags, reverse=reverse)
        assert_same(got, want)
        assert alive(want[1][0])


@pytest.mark.parametrize(
    ("cell", "use"),
    [
        (DIAGONAL, ()),  # test_blocked_vjp.py has a hand-written backward pass without flags
        (DIAGONAL, ("mask",)),
        (LSTM_CELL, ("resets",)),
        exhaustive(LSTM_CELL, ("mask",)),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else type(value).__name__,
)
def test_flags_are_optional(cell, use):
    params, carry, xs, given = problem(cell)
    given = {name: given[name] for name in use}
    assert_same(
        unrolled(cell)(params, carry, xs, **given), reference_loop(cell, params, carry, xs, **given)
    )


def test_nan_at_masked_steps_has_no_effect():
    cell = LSTM_CELL
    params, carry, xs, _ = problem(cell)
    real = np.array([1, 2, 5])  # among masked steps
    mask = NO_RESETS.copy()
    mask[real] = True
    padded = nan_at_masked(xs, mask)
    got = unrolled(cell)(params, carry, padded, resets=NO_RESETS, mask=mask)
    assert_same(got, reference_loop(cell, params, carry, xs, mask=mask))
    (last, ys), (_, _, d_xs) = jax.tree.map(np.asarray, got)
    assert_same((last, ys[real]), reference_loop(cell, params, carry, np.asarray(xs)[real])[0])
    assert not np.any(ys[~mask]) and not np.any(d_xs[~mask])


@one_of_each
def test_no_gradient_crosses_a_reset(cell):
    params, carry, xs, _ = problem(cell)
    resets, after = NO_RESETS.copy(), NO_RESETS.copy()
    resets[4], after[4:] = True, True

    def of_what_follows(resets):
        _, (_, to_carry, to_xs) = unrolled(cell)(
            params, carry, xs, counted=after, resets=resets, mask=ALL_STEPS
        )
        return jax.tree.map(np.asarray, (to_carry, to_xs))

    to_carry, to_xs = of_what_follows(resets)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves((to_carry, to_xs[:4]))) and np.all(
        to_xs[4:] != 0
    )
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(of_what_follows(NO_RESETS)))


@one_of_each
def test_zero_steps_return_the_carry(cell):
    params, carry, xs, _ = problem(cell)

    @jax.jit
    def run(params, carry, xs):
        return [
            unroll(cell, params, carry, xs, remat=remat)
            for remat in (None, Segments(), Segments(4))
        ]

    for last, ys in run(params, carry, np.asarray(xs)[:0]):
        assert_same((last, ys.shape), (carry, (0, B, H)), 0)


@pytest.mark.parametrize(
    ("cell", "reverse", "remat"),
    [(DIAGONAL, False, None), (STACK, False, None), (LSTM_CELL, True, Segments(4))],
    ids=lambda value: str(value) if isinstance(value, Segments) else type(value).__name__,
)
def test_a_batch_row_without_steps_keeps_its_carry(cell, reverse, remat):
    params, carry, xs, given = problem(cell)
    mask = ALL_STEPS.copy()
    mask[:, 1] = False  # a batch row without steps
    (last, ys), _ = unrolled(cell, reverse, remat)(
        params, carry, xs, resets=given["resets"], mask=mask
    )
    row = functools.partial(jax.tree.map, lambda a: np.asarray(a)[1])
    assert_same(row(last), row(carry), 0)
    ys = np.asarray(ys)
    assert np.all(ys[:, 1] == 0) and np.all(ys[:, 0] != 0)


@pytest.mark.parametrize("cell", cells(LSTM, DiagonalLinear))
def test_zero_batch_rows(cell):
    batch_shape = (3, 0)
    params, carry, xs, flags = problem(cell, batch_shape)
    (last, ys), (d_params, d_carry, d_xs) = values_and_gradients(
        lambda *a: unroll(cell, *a, **flags), params, carry, xs
    )
    assert ys.shape == (T, *batch_shape, cell.hidden_dim) and d_xs.shape == xs.shape
    assert (
        jax.tree.map(jnp.shape, last)
        == jax.tree.map(jnp.shape, d_carry)
        == jax.tree.map(jnp.shape, carry)
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(d_params))


@pytest.mark.parametrize(
    ("cell", "reverse", "remat"),
    [
        (MIN_GRU, True, Segments()),
        (STACK, False, Segments(2 * T)),
        (LSTM_CELL, True, Segments(4)),
        exhaustive(LSTM_CELL, False, Segments()),
        exhaustive(DIAGONAL, False, Segments(4)),
    ],
    ids=lambda value: str(value) if isinstance(value, Segments) else type(value).__name__,
)
def test_segments_equal_the_reference_loop(cell, reverse, remat):
    """T = 7 is split into 3 + 3 + 1, 7, and 4 + 3 steps."""
    params, carry, xs, given = problem(cell)
    cut = unrolled(cell, reverse, remat)(params, carry, nan_at_masked(xs, given["mask"]), **given)
    assert_same(cut, reference_loop(cell, params, carry, xs, **given, reverse=reverse))


def test_gradient_equals_finite_differences():
    cell = LSTM_CELL
    params, carry, xs, given = problem(cell)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, (params, carry)))
    flat = np.concatenate([leaf.ravel() for leaf in leaves])
    ends = np.cumsum([leaf.size for leaf in leaves])

    @jax.jit
    @jax.vmap
    def at(flat):
        cut = [
            part.reshape(leaf.shape)
            for part, leaf in zip(jnp.split(flat, ends[:-1]), leaves, strict=True)
        ]
        return scalar_loss(unroll(cell, *jax.tree.unflatten(tree, cut), xs, **given))

    # Five points: the error is O(eps^4), about 1e-10 in float64.
    eps, eye = 1e-4, np.eye(flat.size)
    loss = np.asarray(at(np.concatenate([flat + k * eps * eye for k in (1, -1, 2, -2)]))).reshape(
        4, -1
    )
    want = (8 * (loss[0] - loss[1]) - (loss[2] - loss[3])) / (12 * eps)
    _, grads = unrolled(cell)(params, carry, xs, **given)
    got = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(grads[:2])])
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("cell", cells(*map(type, CELLS)))
def test_recur_of_inputs_equals_the_call(cell):
    # T independent steps, each with its own carry.
    params, carry, xs, _ = problem(cell, (T, B), 1)

    @jax.jit
    def both(params, carry, x):
        return cell.recur(params, carry, cell.inputs(params, x)), cell(params, carry, x)

    assert_same(*both(params, carry, xs[0]))
