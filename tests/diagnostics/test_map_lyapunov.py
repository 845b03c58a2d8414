"""Lyapunov exponents of plain maps, without a cell, against published values."""

import inspect
import math

import jax
import numpy as np
import pytest

from tbptt.diagnostics import lyapunov_spectrum, map_lyapunov_spectrum

spectrum = jax.jit(
    map_lyapunov_spectrum, static_argnums=(0, 2), static_argnames=("count", "warmup")
)


def logistic(x):
    return 4 * x * (1 - x)


def henon(carry):
    x, y = carry
    return 1 - 1.4 * x**2 + y, 0.3 * x


def test_the_logistic_map_has_log_two():
    got = spectrum(logistic, np.asarray(0.3), 20_000, warmup=100)
    assert got.running.shape == (19_900, 1)
    np.testing.assert_allclose(got.exponents, math.log(2), atol=2e-3)
    x, total = 0.3, 0.0  # the first steps by hand: the mean of log|4 - 8 x|
    first = np.asarray(spectrum(logistic, np.asarray(0.3), 20).running)
    for step in range(20):
        total, x = total + math.log(abs(4 - 8 * x)), logistic(x)
        np.testing.assert_allclose(first[step, 0], total / (step + 1), rtol=1e-9)


def test_the_henon_map_has_its_published_exponents():
    start = np.asarray(0.1), np.asarray(0.1)
    got = spectrum(henon, start, 20_000, warmup=100)
    np.testing.assert_allclose(got.exponents[0], 0.419, atol=5e-3)
    np.testing.assert_allclose(np.sum(got.exponents), math.log(0.3), rtol=1e-10)
    np.testing.assert_allclose(got.log_det_mean, math.log(0.3), rtol=1e-10)
    first = spectrum(henon, start, 20_000, count=1, warmup=100)
    np.testing.assert_allclose(first.exponents, got.exponents[:1], rtol=1e-6)


@jax.custom_vjp
def opaque(x):
    return x


opaque.defvjp(lambda x: (x, None), lambda _, g: (g,))


@pytest.mark.parametrize(
    ("function", "carry", "steps", "error", "words"),
    [
        (lambda x: x[:1], np.ones(2), 3, ValueError, r"of its argument.*\(2,\).*got.*\(1,\)"),
        (lambda x: (x, x), np.ones(2), 3, ValueError, "structure and shapes"),
        (logistic, np.asarray(1), 3, TypeError, "carry is int64: .* need floating"),
        (logistic, np.asarray(0.3), 0, ValueError, "steps must be"),
        (opaque, np.asarray(0.3), 3, TypeError, "function has a custom backward pass"),
    ],
)
def test_wrong_arguments_are_named(function, carry, steps, error, words):
    with pytest.raises(error, match=words):
        map_lyapunov_spectrum(function, carry, steps)


def test_a_function_in_place_of_a_cell_names_the_other_diagnostic():
    with pytest.raises(TypeError, match=r"cell must be a cell.*use map_lyapunov_spectrum\("):
        inspect.unwrap(lyapunov_spectrum)(logistic, None, np.asarray(0.3), np.zeros((5, 1)))
