"""What the tests of Newton's unroll share: both engines, and a run of one with its gradients."""

import jax
import pytest

from tbptt.newton import newton_unroll, quasi_newton_unroll
from tbptt.unroll import unroll
from tests.problems import functional

D, H, B, T = 3, 4, 2, 20
ENGINES = [newton_unroll, quasi_newton_unroll]
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=["newton", "quasi"])


def solve(engine, cell, params, carry, xs, **given):
    """((last, ys), gradients wrt params, carry and xs) and the report, which plain `unroll` has none of."""

    def loss(params, carry, xs):
        last, ys, *report = engine(cell, params, carry, xs, **given)
        return functional((last, ys)), ((last, ys), report)

    (_, (out, report)), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(params, carry, xs)
    return (out, grads), report[0] if report else None


def plain(*args, **given):
    return solve(unroll, *args, **given)[0]
