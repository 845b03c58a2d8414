"""Whether Newton's unroll converged or fell back, it says so and is right; and what that took."""

import functools

import jax
import jax.numpy as jnp

from tbptt.cells import GRU, DiagonalLinear, Elman
from tbptt.newton import flat, newton_unroll, quasi_newton_unroll
from tbptt.unroll import unroll
from tests.newton_runs import ENGINES, B, D, H, each_engine, plain, solve
from tests.problems import assert_same, problem


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

    got, want = (jax.jit(jax.grad(functools.partial(loss, engine=engine)))(params) for engine in (newton_unroll, unroll))
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
    want, counts = plain(cell, params, carry, xs), []
    for damping in (0.0, 0.2, 1.0):
        got, report = solve(quasi_newton_unroll, cell, params, carry, xs, damping=damping)
        assert bool(report.converged)
        assert_same(got, want, 1e-10)
        counts.append(int(report.iterations))
    assert counts[0] == 2 < counts[1] < counts[2] <= 51  # Newton for a linear cell; Jacobi: one step an iteration at worst


def test_tolerance_is_kept():
    cell, params, carry, xs = contractive_gru(100)
    want = unroll(cell, params, carry, xs)
    for engine in ENGINES:
        run = jax.jit(engine, static_argnums=0, static_argnames=("tolerance", "max_iterations"))
        loose, tight = (run(cell, params, carry, xs, tolerance=tol)[2] for tol in (1e-2, None))
        assert bool(loose.converged) and int(loose.iterations) < int(tight.iterations)
        assert float(tight.residual) < 1e-14 and float(loose.residual) <= 2e-2
        hopeless = run(cell, params, carry, xs, tolerance=1e-300, max_iterations=20)
        assert bool(hopeless[2].fell_back)
        assert_same(hopeless[:2], want, 1e-12)


@each_engine
def test_vmapped_lanes_report_for_themselves(engine):
    cell, params, carry, xs = chaos(40)
    params = jax.tree.map(lambda p: jnp.stack([0.05 * p, p]), params)  # one contracts, one does not
    last, ys, report = jax.jit(jax.vmap(lambda p: engine(cell, p, carry, xs, max_iterations=25)))(params)
    assert_same((last, ys), jax.jit(jax.vmap(lambda p: unroll(cell, p, carry, xs)))(params), 1e-8)
    assert report.converged.tolist() == [True, False] and report.fell_back.tolist() == [False, True]


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
