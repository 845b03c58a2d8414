"""Errors of gradient by lag and carry influence for invalid input."""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest

import tbptt
from tbptt.diagnostics import carry_influence, gradient_by_lag, lag_profile
from tests.support.counting_cell import CountingElman, total


def test_input_errors(key):
    jax.eval_shape(functools.partial(check_errors, key))  # traced only


def check_errors(key):
    cell = tbptt.Elman(2, 3)
    params, carry, xs = cell.init(key), cell.initial_carry(), jnp.ones((5, 2))
    by_lag, last, influence = map(
        inspect.unwrap, (lag_profile, gradient_by_lag, carry_influence)
    )  # without the type-checking hook
    profile = functools.partial(by_lag, cell, params, carry, xs, total)
    with pytest.raises(ValueError, match=r"lags=6, T=5"):
        profile(lags=6)
    with pytest.raises(TypeError, match="lags must be a Python int"):
        profile(lags=2.0)
    with pytest.raises(ValueError, match=r"lags - 1 = 2 .* T - 1 = 4; got 1 \.\. 4"):
        profile(lags=3, at=[1, 4])
    with pytest.raises(ValueError, match=r"got 4 \.\. 5"):
        profile(lags=3, at=[4, 5])
    with pytest.raises(ValueError, match="at must be a non-empty sequence"):
        profile(lags=3, at=[])
    with pytest.raises(ValueError, match="levels must be"):
        profile(lags=3, levels=(0.5, 1.5))
    with pytest.raises(ValueError, match=r"resets must be booleans \[T, \*batch\]"):
        profile(lags=3, resets=jnp.zeros((4,), bool))
    with pytest.raises(ValueError, match=r"mask must be booleans \[T, \*batch\]"):
        profile(lags=3, mask=jnp.zeros((5,)))
    for wrong_d in (
        lambda: last(cell, params, carry, jnp.ones((5, 3)), jnp.sum),
        lambda: influence(cell, params, carry, jnp.ones((5, 3))),
    ):
        with pytest.raises(ValueError, match=r"D = Elman.input_dim = 2; got shape \(5, 3\)"):
            wrong_d()
    with pytest.raises(
        ValueError,
        match=r"carry.h must have the shape \(4, 3\) of cell.initial_carry\(\(4,\)\); got \(3,\)",
    ):
        last(cell, params, carry, jnp.ones((5, 4, 2)), jnp.sum)
    with pytest.raises(
        ValueError,
        match=r"carry.h must have the shape \(3,\) .* without batch axes .*; got \(4, 3\)",
    ):
        influence(cell, params, cell.initial_carry((4,)), xs)
    with pytest.raises(ValueError, match=r"carry must be like cell.initial_carry\(\)"):
        influence(cell, params, (carry,), xs)
    with pytest.raises(
        ValueError, match=r"step_losses must return a floating scalar; got float64\[3\]"
    ):
        by_lag(cell, params, carry, xs, lambda y, s: y, lags=3)
    with pytest.raises(ValueError, match="last_loss must return a floating scalar"):
        last(cell, params, carry, xs, lambda y: y)
    with pytest.raises(ValueError, match="at least one step"):
        last(cell, params, carry, xs[:0], jnp.sum)
    with pytest.raises(ValueError, match=r"one sequence \[T, D\]"):
        influence(cell, params, cell.initial_carry((4,)), jnp.ones((5, 4, 2)))
    counting = CountingElman()
    start = counting.initial_carry()
    for measure in (
        lambda: gradient_by_lag(counting, None, start, xs, jnp.sum),
        lambda: lag_profile(counting, None, start, xs, total, lags=2),
        lambda: carry_influence(counting, None, start, xs),
    ):
        with pytest.raises(TypeError, match=r"carry\['steps'\] is int32"):
            measure()
