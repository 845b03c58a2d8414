"""What the tests of Newton's unroll share: both engines, and a compiled run of one with its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.unroll.newton import newton_unroll_with_report, quasi_newton_unroll_with_report
from tests.support.problems import functional

D, H, B, T = 3, 4, 2, 9
rarely = pytest.mark.exhaustive
NEWTON, QUASI = (
    pytest.param(newton_unroll_with_report, id="newton"),
    pytest.param(quasi_newton_unroll_with_report, id="quasi"),
)
each_engine = pytest.mark.parametrize("engine", [NEWTON, QUASI])
newton_first = pytest.mark.parametrize(
    "engine", [NEWTON, pytest.param(quasi_newton_unroll_with_report, id="quasi", marks=rarely)]
)


@functools.cache
def solver(engine, cell, **static):
    """A compiled function of params, carry, xs and flags: ((last, ys), gradients wrt the first three), and the report.

    In its loss only those outputs count that are `counted`.
    """

    def loss(params, carry, xs, counted, given):
        last, ys, report = engine(cell, params, carry, xs, **given, **static)
        return functional((last, jnp.where(counted[..., None], ys, 0))), ((last, ys), report)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    def solve(params, carry, xs, counted=None, **given):
        counted = np.ones(np.shape(xs)[:-1], bool) if counted is None else counted
        (_, (out, report)), grads = compiled(params, carry, xs, counted, given)
        return (out, grads), report

    return solve


def no_flags(xs):
    """Flags that reset nothing and mask nothing, so that all uses of flags are one program."""
    return {"resets": np.zeros(np.shape(xs)[:-1], bool), "mask": np.ones(np.shape(xs)[:-1], bool)}
