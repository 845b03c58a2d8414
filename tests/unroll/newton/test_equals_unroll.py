"""The Newton unroll functions equal `unroll`, for every cell, flag, batch shape and dtype."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, Elman, MinGRU, Stack
from tbptt.unroll import unroll
from tbptt.unroll.newton import newton_unroll_with_report, quasi_newton_unroll_with_report
from tests.support.newton_runs import (
    B,
    D,
    H,
    T,
    exhaustive,
    neutral_flags,
    newton_first,
    solver,
)
from tests.support.problems import assert_same, plain_reference, problem, reference_loop

NEWTON, QUASI = newton_unroll_with_report, quasi_newton_unroll_with_report
ELMAN, STACK = Elman(D, H, gain=0.8), Stack((LSTM(D, 5), Elman(5, H)))


def name(value):
    return getattr(value, "__name__", type(value).__name__) if callable(value) else None


def batch_of(cell):
    return (3, 2) if isinstance(cell, LSTM) else (B,)


@pytest.mark.parametrize(
    ("unroll_fn", "cell"),
    [
        (NEWTON, LSTM(D, H)),
        (QUASI, GRU(D, H)),
        pytest.param(NEWTON, STACK, marks=exhaustive),
        pytest.param(QUASI, LSTM(D, H), marks=exhaustive),
    ],
    ids=name,
)
def test_equals_unroll(unroll_fn, cell):
    batch_shape = batch_of(cell)
    params, carry, xs, given = problem(cell, batch_shape, T)
    for use in ("", "resets", "mask", "resets mask"):
        flags = neutral_flags(xs) | {name: given[name] for name in use.split()}
        padded_xs = np.where(np.asarray(flags["mask"])[..., None], xs, np.nan)
        got, report = solver(unroll_fn, cell)(params, carry, padded_xs, **flags)
        want = plain_reference(cell, batch_shape, T, use)
        assert_same(got, want, 1e-10)
        assert (
            bool(report.converged) and not bool(report.fell_back) and float(report.residual) < 1e-14
        )
        # The gradient is not zero.
        assert min(np.max(np.abs(g)) for g in jax.tree.leaves(want[1][0])) > 1e-3


def test_flags_are_optional_without_batch_axes():
    """Only a mask; test_newton_gradient_is_not_sequential is without flags."""
    cell = ELMAN
    params, carry, xs, given = problem(cell, (), T)
    got, report = solver(QUASI, cell)(params, carry, xs, mask=given["mask"])
    assert_same(got, reference_loop(cell, params, carry, xs, mask=given["mask"]), 1e-10)
    assert bool(report.converged)


@pytest.mark.parametrize(
    ("unroll_fn", "cell"),
    [(NEWTON, ELMAN), pytest.param(QUASI, MinGRU(D, H), marks=exhaustive)],
    ids=name,
)
def test_one_step_and_zero_steps(unroll_fn, cell):
    params, carry, xs, _ = problem(cell, steps=1)
    got, report = solver(unroll_fn, cell)(params, carry, xs)
    assert_same(got, reference_loop(cell, params, carry, xs), 1e-10)
    # One iteration to solve, one to confirm.
    assert bool(report.converged) and int(report.iterations) == 2
    last, ys, report = jax.jit(functools.partial(unroll_fn, cell))(
        params, carry, np.asarray(xs)[:0]
    )
    assert_same((last, ys.shape), (carry, (0, B, H)), 0)
    assert (bool(report.converged), int(report.iterations), bool(report.fell_back)) == (
        True,
        0,
        False,
    )


class NonzeroStart(Elman):
    """A cell whose initial carry is not 0."""

    def initial_carry(self, batch_shape=()):
        return super().initial_carry(batch_shape)._replace(h=jnp.full((*batch_shape, H), 0.5))


@newton_first
def test_reset_restores_the_initial_carry_and_stops_the_gradient(unroll_fn):
    cell = NonzeroStart(D, H)
    params, carry, xs, _ = problem(cell, steps=T)
    resets, after = np.zeros((T, B), bool), np.zeros((T, B), bool)
    resets[4], after[4:] = True, True
    got, report = solver(unroll_fn, cell)(params, carry, xs, resets=resets)
    assert_same(got, reference_loop(cell, params, carry, xs, resets=resets), 1e-10)
    assert bool(report.converged)
    (_, (_, to_carry, to_xs)), _ = solver(unroll_fn, cell)(
        params, carry, xs, counted=after, resets=resets
    )
    to_h, to_xs = np.asarray(to_carry.h), np.asarray(to_xs)
    assert np.all(to_h == 0) and np.all(to_xs[:4] == 0) and np.all(to_xs[4:] != 0)


def test_nan_at_masked_steps_has_no_effect():
    unroll_fn, cell = NEWTON, LSTM(D, H)
    params, carry, xs, _ = problem(cell, batch_of(cell), T)
    real = np.array([1, 2, 4, 7])
    mask = np.zeros(xs.shape[:-1], bool)
    mask[real] = True
    padded_xs = np.where(mask[..., None], xs, np.nan)
    got, report = solver(unroll_fn, cell)(
        params, carry, padded_xs, resets=np.zeros_like(mask), mask=mask
    )
    assert_same(got, reference_loop(cell, params, carry, xs, mask=mask), 1e-10)
    (last, ys), _ = jax.tree.map(np.asarray, got)
    assert_same(
        (last, ys[real]), reference_loop(cell, params, carry, np.asarray(xs)[real])[0], 1e-10
    )
    assert bool(report.converged)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("unroll_fn", "wide", "steps"), [(NEWTON, ELMAN, T), (QUASI, GRU(D, 16), 1000)]
)
def test_float32(unroll_fn, wide, steps):
    cell = dataclasses.replace(wide, dtype=jnp.float32)
    params, carry, xs, given = problem(wide, steps=steps)
    exact = plain_reference(wide, steps=steps)
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), (params, carry, xs))
    got, report = solver(unroll_fn, cell)(*single, **given)
    assert bool(report.converged) and report.residual.dtype == jnp.float32
    for tolerance, ours, theirs in zip((2e-5, 2e-4), got, exact, strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert a.dtype == jnp.float32
            a, b = np.asarray(a), np.asarray(b)
            assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


@newton_first
def test_second_derivatives_and_forward_mode(unroll_fn):
    cell = Elman(D, 2)
    params, carry, xs, given = problem(cell, steps=4)

    def column(run, w_h, direction):
        def loss(w_h):
            last, ys, *_ = run(cell, params._replace(w_h=w_h), carry, xs, **given)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(last.h**3)

        return jax.jvp(jax.grad(loss), (w_h,), (direction,))[1]  # forward over reverse

    both = jax.jit(lambda *args: [column(run, *args) for run in (unroll_fn, unroll)])
    for direction in np.eye(4).reshape(4, 2, 2):
        got, want = both(params.w_h, direction)
        assert_same(got, want, 1e-10)
        assert np.max(np.abs(want)) > 1e-2
