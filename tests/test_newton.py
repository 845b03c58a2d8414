"""Newton's unroll is `unroll`, in values and gradients, whether it converged or fell back; and it says which."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, ElmanCarry, GRUResetBefore, MinGRU, MinLSTM, Stack
from tbptt.newton import flat, newton_unroll, quasi_newton_unroll
from tbptt.unroll import unroll
from tests.test_unroll import assert_same, problem

D, H, B, T = 3, 4, 2, 20
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
ENGINES = [newton_unroll, quasi_newton_unroll]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=["newton", "quasi"])


def functional(out):
    """A number that every entry of every leaf has its own say in."""
    probes = [jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in jax.tree.leaves(out)]
    return sum(jnp.sum(p * leaf**2 + p * leaf) for p, leaf in zip(probes, jax.tree.leaves(out), strict=True))


def solve(engine, cell, params, carry, xs, **given):
    """((last, ys), gradients wrt params, carry and xs) and the report, which plain `unroll` has none of."""

    def loss(params, carry, xs):
        last, ys, *report = engine(cell, params, carry, xs, **given)
        return functional((last, ys)), ((last, ys), report)

    (_, (out, report)), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(params, carry, xs)
    return (out, grads), report[0] if report else None


def plain(*args, **given):
    return solve(unroll, *args, **given)[0]


@each_cell
@each_engine
def test_is_the_scan(cell, engine):
    params, carry, xs, given = problem(cell, steps=T)
    got, report = solve(engine, cell, params, carry, xs, **given)
    want = plain(cell, params, carry, xs, **given)
    assert_same(got, want, 1e-10)
    assert bool(report.converged) and not bool(report.fell_back) and float(report.residual) < 1e-14
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want[1][0])) > 1e-3  # the gradient is alive


@each_engine
@pytest.mark.parametrize("use", ["", "resets", "mask"])
@pytest.mark.parametrize("batch_shape", [(), (3, 2)])
def test_is_the_scan_for_every_flag_and_batch(engine, use, batch_shape):
    cell = LSTM(D, H)
    params, carry, xs, given = problem(cell, batch_shape, steps=T)
    given = {name: given[name] for name in use.split()}
    got, report = solve(engine, cell, params, carry, xs, **given)
    assert_same(got, plain(cell, params, carry, xs, **given), 1e-10)
    assert bool(report.converged)


@each_cell
@each_engine
def test_one_step_and_none(cell, engine):
    params, carry, xs, _ = problem(cell)
    got, report = solve(engine, cell, params, carry, xs[:1])
    assert_same(got, plain(cell, params, carry, xs[:1]), 1e-10)
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

    to_carry, to_xs = jax.grad(after, argnums=(0, 1))(carry, xs)
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
    assert_same(got, plain(cell, params, carry, xs), 1e-10)
    assert bool(report.converged)


@each_engine
def test_nan_input_falls_back_and_says_so(engine):
    cell = GRU(D, H)
    for steps in (20, 1000):  # XLA's maximum over many numbers lets a NaN go by
        params, carry, xs, _ = problem(cell, steps=steps)
        xs = xs.at[10, 0].set(jnp.nan)
        got = jax.jit(lambda xs: engine(cell, params, carry, xs))(xs)  # noqa: B023
        assert_same(got[:2], unroll(cell, params, carry, xs), 1e-10)
        assert not bool(got[2].converged) and bool(got[2].fell_back) and bool(jnp.isnan(got[2].residual))
        assert bool(jnp.all(jnp.isfinite(got[1][:, 1])))  # the other lane


def contractive_gru(steps):
    cell = GRU(D, 16)
    params, carry = cell.init(jax.random.key(0)), cell.initial_carry((B,))
    return cell, params, carry, jax.random.normal(jax.random.key(1), (steps, B, D))


def test_few_iterations_whatever_the_length():
    counts = []
    for steps in (100, 1000):
        cell, params, carry, xs = contractive_gru(steps)
        got, report = solve(newton_unroll, cell, params, carry, xs)
        assert bool(report.converged) and float(report.residual) < 1e-14
        counts.append(int(report.iterations))
    assert_same(got, plain(cell, params, carry, xs), 1e-10)
    assert 2 < counts[1] < 15 and counts[1] <= counts[0] + 1


def test_the_diagonal_alone_takes_more_iterations_and_gets_there():
    cell, params, carry, xs = contractive_gru(1000)
    got, report = solve(quasi_newton_unroll, cell, params, carry, xs)
    assert bool(report.converged) and 15 < int(report.iterations) < 128
    assert_same(got, plain(cell, params, carry, xs), 1e-10)


def chaos(steps, gain=3.0, seed=0):
    cell = Elman(D, 32, gain=gain)
    carry = cell.initial_carry((B,))
    carry = carry._replace(h=jax.random.normal(jax.random.key(seed + 1), carry.h.shape))
    return cell, cell.init(jax.random.key(seed)), carry, 0.1 * jax.random.normal(jax.random.key(2), (steps, B, D))


@each_engine
def test_chaos_falls_back_to_the_scan_gradient_included(engine):
    steps = 60
    cell, params, carry, xs = chaos(steps)
    nudged = unroll(cell, params, carry._replace(h=carry.h + 1e-12), xs)[1] - unroll(cell, params, carry, xs)[1]
    assert float(jnp.max(jnp.abs(nudged))) > 1e-8  # it is chaos: four digits more are lost every 60 steps
    got, report = solve(engine, cell, params, carry, xs, max_iterations=16)
    assert not bool(report.converged) and bool(report.fell_back) and int(report.iterations) == 16
    assert float(report.residual) > 1e-3
    (out, grads), (want, want_grads) = got, plain(cell, params, carry, xs)
    assert_same(out, want, 1e-10)
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want_grads))
    assert_same(jax.tree.map(lambda g: g / scale, grads), jax.tree.map(lambda g: g / scale, want_grads), 1e-10)


def test_after_a_fallback_the_gradient_cannot_overflow():
    """The products of 2,000 chaotic Jacobians do, in float32; a loss on the first steps needs none of them."""
    cell = Elman(D, 32, gain=3.0, dtype=jnp.float32)
    _, *arrays = chaos(2000)
    params, carry, xs = jax.tree.map(lambda a: a.astype(jnp.float32), tuple(arrays))

    def loss(params, engine):
        return jnp.sum(engine(cell, params, carry, xs)[1][:10] ** 2)

    got, want = jax.grad(loss)(params, newton_unroll), jax.grad(loss)(params, unroll)
    assert_same(got, want, 1e-3)
    assert float(jnp.max(jnp.abs(want.w_h))) > 1


@each_engine
def test_what_says_it_converged_is_right(engine):
    """From contractive to chaotic: whatever the report says, it is the scan's result."""
    step = jax.jit(lambda p, c, x: (engine(CHAOTIC, p, c, x, max_iterations=40), unroll(CHAOTIC, p, c, x)))
    said = []
    for gain in (0.1, 0.3, 1.0, 1.3, 1.6, 2.0):
        for seed in range(3):
            _, params, carry, xs = chaos(100, gain, seed)
            (last, ys, report), want = step(params, carry, xs)
            assert_same((last, ys), want, 1e-9)
            said.append(bool(report.converged))
    assert 3 <= sum(said) <= 15


CHAOTIC = chaos(1)[0]


@each_engine
def test_enough_iterations_solve_anything(engine):
    """k iterations make the first k steps exact, chaos or not."""
    cell, params, carry, xs = chaos(20)
    got, report = solve(engine, cell, params, carry, xs, max_iterations=30)
    assert bool(report.converged) and int(report.iterations) <= 22
    assert_same(got, plain(cell, params, carry, xs), 1e-8)


def test_damping_shrinks_the_jacobian():
    cell = DiagonalLinear(D, H, a_min=0.3, a_max=0.5)
    params, carry, xs, _ = problem(cell, steps=50)
    run = functools.partial(quasi_newton_unroll, cell, params, carry, xs)
    counts = [int(run(damping=d)[2].iterations) for d in (0.0, 0.2, 1.0)]
    assert counts[0] == 2 < counts[1] < counts[2] <= 51  # Newton for a linear cell; Jacobi: one step an iteration at worst
    for damping in (0.2, 1.0):
        got, report = solve(quasi_newton_unroll, cell, params, carry, xs, damping=damping)
        assert bool(report.converged)
        assert_same(got, plain(cell, params, carry, xs), 1e-10)


def test_tolerance_is_kept():
    cell, params, carry, xs = contractive_gru(100)
    for engine in ENGINES:
        loose, tight = (engine(cell, params, carry, xs, tolerance=tol)[2] for tol in (1e-2, None))
        assert bool(loose.converged) and int(loose.iterations) < int(tight.iterations)
        assert float(tight.residual) < 1e-14 and float(loose.residual) <= 2e-2
        hopeless = engine(cell, params, carry, xs, tolerance=1e-300, max_iterations=20)
        assert bool(hopeless[2].fell_back)
        assert_same(hopeless[:2], unroll(cell, params, carry, xs), 1e-12)


@each_engine
def test_float32(engine):
    cell = GRU(D, 16, dtype=jnp.float32)
    params, carry, xs, given = problem(GRU(D, 16), steps=1000)
    exact = plain(GRU(D, 16), params, carry, xs, **given)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (params, carry, xs))
    got, report = solve(engine, cell, *single, **given)
    assert bool(report.converged) and report.residual.dtype == jnp.float32
    for tolerance, ours, theirs in zip((2e-5, 2e-4), got, exact, strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert a.dtype == jnp.float32
            assert float(jnp.max(jnp.abs(a - b))) <= tolerance * float(jnp.max(jnp.abs(b)))


@each_engine
def test_vmapped_lanes_report_for_themselves(engine):
    cell, params, carry, xs = chaos(40)
    params = jax.tree.map(lambda p: jnp.stack([0.05 * p, p]), params)  # one contracts, one does not
    last, ys, report = jax.vmap(lambda p: engine(cell, p, carry, xs, max_iterations=25))(params)
    assert_same((last, ys), jax.vmap(lambda p: unroll(cell, p, carry, xs))(params), 1e-8)
    assert report.converged.tolist() == [True, False] and report.fell_back.tolist() == [False, True]


@each_engine
def test_second_derivatives_and_forward_mode(engine):
    cell = Elman(D, 2)
    params, carry, xs, given = problem(cell, steps=6)

    def curvature(run):
        def loss(w_h):
            last, ys, *_ = run(cell, params._replace(w_h=w_h), carry, xs, **given)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(last.h**3)

        return jax.hessian(loss)(params.w_h)  # forward over reverse

    got, want = curvature(engine), curvature(unroll)
    assert_same(got, want, 1e-10)
    assert float(jnp.max(jnp.abs(want))) > 1e-2


def test_newton_does_not_go_back_step_by_step(monkeypatch):
    """Where it converged, the adjoint in order is not run: its results would be NaN here."""
    cell, params, carry, xs = contractive_gru(50)
    want = plain(cell, params, carry, xs)
    monkeypatch.setattr(flat, "tangents_in_order", lambda cell, problem, before, start, sources: sources * jnp.nan)
    got, _ = solve(newton_unroll, cell, params, carry, xs)
    assert_same(got, want, 1e-10)
    got, _ = solve(quasi_newton_unroll, cell, params, carry, xs)
    assert not bool(jnp.all(jnp.isfinite(got[1][2])))  # the patch bites


def test_the_diagonal_needs_no_square_of_the_carry():
    cell = GRU(D, 128)
    params, carry, xs = cell.init(jax.random.key(0)), cell.initial_carry((B,)), jnp.ones((128, B, D))

    def temp_bytes(engine):
        grad = jax.jit(jax.grad(lambda p: jnp.sum(engine(cell, p, carry, xs)[1])))
        return grad.lower(params).compile().memory_analysis().temp_size_in_bytes

    full, diagonal = temp_bytes(newton_unroll), temp_bytes(quasi_newton_unroll)
    squares = 128 * B * 128 * 128 * 8
    assert diagonal < squares / 2 and full > squares, (diagonal, full, squares)


class CountedCarry(NamedTuple):
    h: jax.Array
    step: jax.Array


class Counting(Elman):
    """A carry with an integer in it."""

    def initial_carry(self, batch_shape=()):
        return CountedCarry(super().initial_carry(batch_shape).h, jnp.zeros(batch_shape, int))

    def __call__(self, params, carry, x):
        new, y = super().__call__(params, ElmanCarry(carry.h), x)
        return CountedCarry(new.h, carry.step + 1), y


CELL = GRU(D, H)
PARAMS, CARRY, XS = CELL.init(jax.random.key(0)), CELL.initial_carry((B,)), jnp.ones((T, B, D))
COUNTING = Counting(D, H)


@each_engine
@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, r"xs must be floating.*int", {"xs": jnp.ones((T, B, D), int)}),
        (TypeError, r"mask must be booleans", {"mask": jnp.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(20, 2\); got \(20,\)", {"resets": jnp.ones((T,), bool)}),
        (ValueError, r"carry\.h must be .*\[2, 4\]; got .*\[4\]", {"carry": CELL.initial_carry()}),
        (
            TypeError,
            r"carry\.step must be floating to be solved for; got int64: use unroll",
            {"cell": COUNTING, "params": COUNTING.init(jax.random.key(0)), "carry": COUNTING.initial_carry((B,))},
        ),
        (ValueError, r"max_iterations must be at least 1; got 0", {"max_iterations": 0}),
        (ValueError, r"tolerance must be above 0, or None.*got 0", {"tolerance": 0.0}),
        (ValueError, r"tolerance must be above 0, or None.*got nan", {"tolerance": float("nan")}),
    ],
)
def test_errors_name_what_is_wrong(engine, error, words, change):
    given = {"cell": CELL, "params": PARAMS, "carry": CARRY, "xs": XS} | change
    # Only the library's own message counts: jaxtyping's hook of the tests would speak first.
    with pytest.raises(error, match=words):
        inspect.unwrap(engine)(**given)


@pytest.mark.parametrize("damping", [-0.1, 1.5, float("nan")])
def test_damping_is_a_fraction(damping):
    with pytest.raises(ValueError, match=r"damping must be from 0 .*got"):
        quasi_newton_unroll(CELL, PARAMS, CARRY, XS, damping=damping)
