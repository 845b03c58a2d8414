"""Newton's unroll is `unroll`, in values and gradients: for every cell, flag, batch and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, GRUResetBefore, MinGRU, MinLSTM, Stack
from tbptt.newton import newton_unroll, quasi_newton_unroll
from tbptt.unroll import unroll
from tests.newton_runs import B, D, H, T, each_engine, plain, solve
from tests.problems import assert_same, plain_answer, problem

CELLS = [
    Elman(D, H, gain=0.8),
    GRU(D, H),
    GRUResetBefore(D, H),
    LSTM(D, H),
    DiagonalLinear(D, H),
    MinGRU(D, H),
    MinLSTM(D, H),
    Stack((LSTM(D, 5), Elman(5, H))),
]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)


@each_engine
@each_cell
def test_is_the_scan(cell, engine):
    params, carry, xs, given = problem(cell, steps=T)
    got, report = solve(engine, cell, params, carry, xs, **given)
    want = plain_answer(cell, steps=T)
    assert_same(got, want, 1e-10)
    assert bool(report.converged) and not bool(report.fell_back) and float(report.residual) < 1e-14
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want[1][0])) > 1e-3  # the gradient is alive


@pytest.mark.parametrize(  # every two of the three values meet
    ("engine", "use", "batch_shape"),
    [
        (newton_unroll, "", ()),
        (quasi_newton_unroll, "", (3, 2)),
        (quasi_newton_unroll, "mask", ()),
        (newton_unroll, "mask", (3, 2)),
        (quasi_newton_unroll, "resets", (3, 2)),
        (newton_unroll, "resets", ()),
    ],
)
def test_is_the_scan_for_every_flag_and_batch(engine, use, batch_shape):
    cell = LSTM(D, H)
    params, carry, xs, given = problem(cell, batch_shape, steps=T)
    given = {name: given[name] for name in use.split()}
    got, report = solve(engine, cell, params, carry, xs, **given)
    assert_same(got, plain_answer(cell, batch_shape, T, use), 1e-10)
    assert bool(report.converged)


@each_engine
@each_cell
def test_one_step_and_none(cell, engine):
    params, carry, xs, _ = problem(cell, steps=1)
    got, report = solve(engine, cell, params, carry, xs)
    assert_same(got, plain_answer(cell, steps=1, use=""), 1e-10)
    assert bool(report.converged) and int(report.iterations) == 2  # one to find it, one to see that nothing is left
    last, ys, report = engine(cell, params, carry, xs[:0])
    assert_same((last, ys.shape), (carry, (0, B, H)), 0)
    assert (bool(report.converged), int(report.iterations), bool(report.fell_back)) == (True, 0, False)


class Afresh(GRU):
    """A cell whose start is not 0: a reset must bring it back."""

    def initial_carry(self, batch_shape=()):
        return super().initial_carry(batch_shape)._replace(h=jnp.full((*batch_shape, H), 0.5))


@each_engine
def test_a_reset_brings_the_initial_carry_and_no_gradient(engine):
    cell = Afresh(D, H)
    params, carry, xs, _ = problem(cell, steps=T)
    resets = jnp.zeros((T, B), bool).at[9].set(True)
    got, report = solve(engine, cell, params, carry, xs, resets=resets)
    assert_same(got, plain(cell, params, carry, xs, resets=resets), 1e-10)
    assert bool(report.converged)

    def after(carry, xs):
        return jnp.sum(engine(cell, params, carry, xs, resets=resets)[1][9:] ** 2)

    to_carry, to_xs = jax.jit(jax.grad(after, argnums=(0, 1)))(carry, xs)
    assert bool(jnp.all(to_carry.h == 0)) and bool(jnp.all(to_xs[:9] == 0)) and bool(jnp.all(to_xs[9:] != 0))


@each_engine
def test_nan_padding_changes_nothing(engine):
    cell = GRU(D, H)
    params, carry, xs, _ = problem(cell, (), steps=7)
    real = np.array([1, 2, 4, 7, 8, 9, 11])
    mask = np.zeros(13, bool)
    mask[real] = True

    def padded(cell, params, carry, xs):
        last, ys, report = engine(cell, params, carry, jnp.full((13, D), jnp.nan).at[real].set(xs), mask=mask)
        return last, ys[real], report

    got, report = solve(padded, cell, params, carry, xs)
    assert_same(got, plain_answer(cell, (), 7, use=""), 1e-10)
    assert bool(report.converged)


@each_engine
def test_float32(engine):
    cell = GRU(D, 16, dtype=jnp.float32)
    params, carry, xs, given = problem(GRU(D, 16), steps=1000)
    exact = plain_answer(GRU(D, 16), steps=1000)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (params, carry, xs))
    got, report = solve(engine, cell, *single, **given)
    assert bool(report.converged) and report.residual.dtype == jnp.float32
    for tolerance, ours, theirs in zip((2e-5, 2e-4), got, exact, strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert a.dtype == jnp.float32
            assert float(jnp.max(jnp.abs(a - b))) <= tolerance * float(jnp.max(jnp.abs(b)))


@each_engine
def test_second_derivatives_and_forward_mode(engine):
    cell = Elman(D, 2)
    params, carry, xs, given = problem(cell, steps=6)

    def curvature(run):
        def loss(w_h):
            last, ys, *_ = run(cell, params._replace(w_h=w_h), carry, xs, **given)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(last.h**3)

        return jax.jit(jax.hessian(loss))(params.w_h)  # forward over reverse

    got, want = curvature(engine), curvature(unroll)
    assert_same(got, want, 1e-10)
    assert float(jnp.max(jnp.abs(want))) > 1e-2
