"""Compiled runs of the Newton unroll functions with their gradients, and parametrisations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.unroll.newton import newton_unroll_with_report, quasi_newton_unroll_with_report
from tests.support.problems import scalar_loss

D, H, B, T = 3, 4, 2, 9
exhaustive = pytest.mark.exhaustive
NEWTON = pytest.param(newton_unroll_with_report, id="newton")
QUASI = pytest.param(quasi_newton_unroll_with_report, id="quasi")
each_method = pytest.mark.parametrize("unroll_fn", [NEWTON, QUASI])
newton_first = pytest.mark.parametrize(
    "unroll_fn",
    [NEWTON, pytest.param(quasi_newton_unroll_with_report, id="quasi", marks=exhaustive)],
)


@functools.cache
def solver(unroll_fn, cell, **static):
    """Return a compiled function of params, carry, xs and flags: `((out, gradients), report)`.

    `out` is `(last, ys)`; the gradients are those of `scalar_loss` of the outputs that are
    `counted`, with respect to params, carry and xs.
    """

    def loss(params, carry, xs, counted, given):
        last, ys, report = unroll_fn(cell, params, carry, xs, **given, **static)
        return scalar_loss((last, jnp.where(counted[..., None], ys, 0))), ((last, ys), report)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    def solve(params, carry, xs, counted=None, **given):
        counted = np.ones(np.shape(xs)[:-1], bool) if counted is None else counted
        (_, (out, report)), grads = compiled(params, carry, xs, counted, given)
        return (out, grads), report

    return solve


def neutral_flags(xs):
    """Return flags without effect, so that all uses of flags share one program."""
    return {"resets": np.zeros(np.shape(xs)[:-1], bool), "mask": np.ones(np.shape(xs)[:-1], bool)}
