"""Convergence, fallback, reports and memory of the Newton unroll functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, DiagonalLinear, Elman
from tbptt.unroll import unroll
from tbptt.unroll.newton import (
    flat,
    newton_unroll_with_report,
    quasi_newton_unroll_with_report,
    solve,
)
from tests.support.newton_runs import B, D, H, T, exhaustive, newton_first, solver
from tests.support.problems import (
    assert_same,
    plain_reference,
    problem,
    reference_loop,
    scalar_loss,
    with_gradients,
)


def with_the_scan(unroll_fn, cell, **static):
    """Return a compiled `(params, carry, xs) -> (result of unroll_fn, result of unroll)`."""
    return jax.jit(lambda *given: (unroll_fn(cell, *given, **static), unroll(cell, *given)))


@pytest.mark.parametrize(
    ("unroll_fn", "steps"),
    [
        (newton_unroll_with_report, 1000),  # XLA's maximum of many numbers can miss a NaN
        pytest.param(quasi_newton_unroll_with_report, 20, marks=exhaustive),
    ],
)
def test_nan_input_falls_back_and_is_reported(unroll_fn, steps):
    cell = Elman(D, H)
    params, carry, xs, _ = problem(cell, steps=steps)
    xs = np.array(xs)
    xs[10, 0] = np.nan
    (last, ys, report), want = with_the_scan(unroll_fn, cell)(params, carry, xs)
    assert_same((last, ys), want, 1e-10)
    assert not bool(report.converged) and bool(report.fell_back) and np.isnan(report.residual)
    assert np.all(np.isfinite(np.asarray(ys)[:, 1]))  # the other batch row


@pytest.mark.exhaustive
def test_few_iterations_for_any_length():
    """Newton needs few iterations for any T; diagonal Jacobians need more, but converge."""
    cell, counts = Elman(D, 8, gain=0.8), []
    unrolls = (newton_unroll_with_report, quasi_newton_unroll_with_report)
    run = jax.jit(
        lambda *given: ([unroll_fn(cell, *given) for unroll_fn in unrolls], unroll(cell, *given))
    )
    for steps in (20, 200):
        results, want = run(*problem(cell, steps=steps)[:3])
        for last, ys, report in results:
            assert_same((last, ys), want, 1e-10)
            assert bool(report.converged) and float(report.residual) < 1e-14
        counts.append([int(report.iterations) for _, _, report in results])
    (short, _), (long, diagonal) = counts
    assert 2 < long < 15 and long <= short + 1
    assert 15 < diagonal < 128


@pytest.mark.exhaustive
def test_gradient_over_many_steps_equals_plain_unroll():
    cell = GRU(D, 16)
    got, report = solver(newton_unroll_with_report, cell)(*problem(cell, steps=1000)[:3])
    assert_same(got, plain_reference(cell, steps=1000, use=""), 1e-10)
    assert bool(report.converged)


def chaos(steps, gain=3.0, seed=0):
    cell = Elman(D, 32, gain=gain)
    params, carry, xs, _ = problem(cell, steps=steps, seed=seed)
    return cell, params, carry, 0.1 * np.asarray(xs)


@functools.cache
def scanned(cell):
    return with_gradients(functools.partial(unroll, cell))


@newton_first
def test_chaos_falls_back_with_the_gradient_of_the_scan(unroll_fn):
    cell, params, carry, xs = chaos(60)
    (want, want_grads), perturbed = (
        scanned(cell)(params, carry._replace(h=carry.h + e), xs) for e in (0, 1e-12)
    )
    # Chaos amplifies the perturbation by more than 1e4.
    assert np.max(np.abs(np.asarray(perturbed[0][1]) - np.asarray(want[1]))) > 1e-8
    (out, grads), report = solver(unroll_fn, cell, max_iterations=16)(params, carry, xs)
    assert not bool(report.converged) and bool(report.fell_back) and int(report.iterations) == 16
    assert float(report.residual) > 1e-3
    assert_same(out, want, 1e-10)
    scale = max(np.max(np.abs(g)) for g in jax.tree.leaves(want_grads))
    scaled = functools.partial(jax.tree.map, lambda g: np.asarray(g) / scale)
    assert_same(scaled(grads), scaled(want_grads), 1e-10)


def test_fallback_gradient_uses_no_product_of_jacobians(monkeypatch):
    """Such products may overflow even if the gradient does not; here NaN replaces them."""
    cell = Elman(D, H)
    params, carry, xs, _ = problem(cell, steps=T)
    monkeypatch.setattr(
        solve, "dense_recurrence", lambda jacobians, sources, start: sources * jnp.nan
    )
    got, report = solver.__wrapped__(newton_unroll_with_report, cell)(params, carry, xs)
    assert bool(report.fell_back)
    assert_same(got, reference_loop(cell, params, carry, xs), 1e-10)


@pytest.mark.exhaustive
def test_fallback_gradient_does_not_overflow():
    """Products of 2,000 chaotic Jacobians overflow in float32; this loss needs none of them."""
    cell = Elman(D, 32, gain=3.0, dtype=jnp.float32)
    params, carry, xs = jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a, np.float32)), chaos(2000)[1:]
    )

    def loss(params, unroll_fn):
        return jnp.sum(unroll_fn(cell, params, carry, xs)[1][:5] ** 2)

    got, want = (
        jax.jit(jax.grad(functools.partial(loss, unroll_fn=unroll_fn)))(params)
        for unroll_fn in (newton_unroll_with_report, unroll)
    )
    assert_same(got, want, 1e-3)
    assert np.max(np.abs(want.w_h)) > 1


@pytest.mark.exhaustive  # essential tier: test_vmapped_parameters_have_separate_reports
def test_every_result_equals_unroll():
    """From contractive to chaotic dynamics, the result equals that of the scan."""
    run, converged = with_the_scan(newton_unroll_with_report, chaos(1)[0], max_iterations=40), []
    gains = (0.1, 0.3, 1.0, 2.0, 3.0, 4.0)
    for gain in gains:
        for seed in range(3):
            (last, ys, report), want = run(*chaos(100, gain, seed)[1:])
            assert_same((last, ys), want, 1e-9)
            converged.append(bool(report.converged))
    assert 3 <= sum(converged) <= 15


@pytest.mark.exhaustive  # essential tier: test_damping_shrinks_the_jacobian
def test_T_iterations_always_converge():
    """After k iterations the first k steps are exact, for chaotic dynamics too."""
    cell, params, carry, xs = chaos(20)
    got, report = solver(quasi_newton_unroll_with_report, cell, max_iterations=30)(
        params, carry, xs
    )
    assert bool(report.converged) and int(report.iterations) <= 22
    assert_same(got, reference_loop(cell, params, carry, xs), 1e-8)


def iterations_of_a_linear_cell(ys, a, start, damping, tolerance):
    """Return the iterations of the loop in `quasi_newton_unroll_with_report`, by numpy."""
    sources = ys - a * np.concatenate([start[None], ys[:-1]])
    hs = np.broadcast_to(start, ys.shape)
    for iterations in range(1, 129):
        defects = a * np.concatenate([start[None], hs[:-1]]) + sources - hs
        if np.max(np.abs(defects) / (1 + np.abs(hs))) <= tolerance:
            return iterations
        corrections, correction = np.empty_like(hs), 0.0
        for t, defect in enumerate(defects):
            correction = corrections[t] = (1 - damping) * a * correction + defect
        hs = hs + corrections
    return None


def test_damping_shrinks_the_jacobian():
    cell, steps = DiagonalLinear(D, H, a_min=0.3, a_max=0.5), 50
    params, carry, xs, _ = problem(cell, steps=steps)
    options = [
        {"damping": 0.0},
        {"damping": 0.2},
        {"damping": 1.0},
        {"damping": 0.2, "tolerance": 1e-6},
    ]

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def run(params, carry, xs):
        results = [
            quasi_newton_unroll_with_report(cell, params, carry, xs, **option) for option in options
        ]
        return scalar_loss(results[1][:2]), results

    grads, (*results, (_, _, loose)) = run(params, carry, xs)
    want, want_grads = reference_loop(cell, params, carry, xs)
    assert_same(grads, want_grads, 1e-10)
    for last, ys, report in results:
        assert bool(report.converged)
        assert_same((last, ys), want, 1e-10)
    counts = [int(report.iterations) for _, _, report in results]
    # Newton for a linear cell; Jacobi: one step per iteration.
    assert counts[0] == 2 < counts[1] < counts[2] <= steps + 1
    ys, start = np.asarray(want[1]), np.asarray(carry.h)
    assert loose.iterations == iterations_of_a_linear_cell(ys, params.a, start, 0.2, 1e-6)


def test_tolerance_is_met():
    unroll_fn = newton_unroll_with_report
    cell = Elman(D, 16, gain=0.8)
    given = problem(cell, steps=100)[:3]
    options = [
        {"tolerance": 1e-2},
        {"tolerance": None},
        {"tolerance": 1e-300, "max_iterations": 20},
    ]
    run = jax.jit(
        lambda *given: (
            [unroll_fn(cell, *given, **option) for option in options],
            unroll(cell, *given),
        )
    )
    ((_, _, loose), (_, _, tight), (last, ys, hopeless)), want = run(*given)
    assert bool(loose.converged) and int(loose.iterations) < int(tight.iterations)
    assert float(tight.residual) < 1e-14 and float(loose.residual) <= 2e-2
    assert bool(hopeless.fell_back)
    assert_same((last, ys), want, 1e-12)


def test_vmapped_parameters_have_separate_reports():
    unroll_fn = newton_unroll_with_report
    cell, params, carry, xs = chaos(40)
    # One contracts, one does not.
    params = jax.tree.map(lambda p: np.stack([0.05 * np.asarray(p), p]), params)
    run = jax.vmap(
        lambda p: (unroll_fn(cell, p, carry, xs, max_iterations=25), unroll(cell, p, carry, xs))
    )
    (last, ys, report), want = jax.jit(run)(params)
    assert_same((last, ys), want, 1e-8)
    assert report.converged.tolist() == [True, False] and report.fell_back.tolist() == [False, True]


def test_newton_gradient_is_not_sequential(monkeypatch):
    """After convergence the sequential adjoint, here replaced by NaN, is not used."""
    cell = Elman(D, H)
    given = problem(cell, steps=T)[:3]
    monkeypatch.setattr(
        flat, "sequential_tangents", lambda cell, problem, before, start, sources: sources * jnp.nan
    )
    got, _ = solver.__wrapped__(newton_unroll_with_report, cell)(*given)
    assert_same(got, reference_loop(cell, *given), 1e-10)
    got, _ = solver.__wrapped__(quasi_newton_unroll_with_report, cell)(*given)
    assert not np.all(np.isfinite(got[1][2]))  # the patch has an effect


STEPS, HIDDEN = 128, 128
SQUARES = STEPS * B * HIDDEN * HIDDEN  # entries of all Jacobians


def gradient_of_a_wide_layer(unroll_fn):
    """Return `(the jitted gradient, the shapes of its arguments)`."""
    cell = GRU(D, HIDDEN)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry((B,)))
    xs = jax.ShapeDtypeStruct((STEPS, B, D), float)
    return jax.jit(jax.grad(lambda *given: jnp.sum(unroll_fn(cell, *given)[1]))), (
        params,
        carry,
        xs,
    )


def largest_array(jaxpr):
    largest = 0
    for equation in jaxpr.eqns:
        largest = max([largest, *(variable.aval.size for variable in equation.outvars)])
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            largest = max(largest, largest_array(inner)) if hasattr(inner, "eqns") else largest
    return largest


def test_diagonal_program_has_no_array_of_jacobians():
    grads = [
        gradient_of_a_wide_layer(unroll_fn)
        for unroll_fn in (newton_unroll_with_report, quasi_newton_unroll_with_report)
    ]
    full, diagonal = (largest_array(grad.trace(*given).jaxpr.jaxpr) for grad, given in grads)
    assert diagonal < SQUARES / 20 and full >= SQUARES, (diagonal, full, SQUARES)
