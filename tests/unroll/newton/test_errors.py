"""Errors of the Newton unroll functions."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, Elman, ElmanCarry
from tbptt.unroll.newton import quasi_newton_unroll_with_report
from tests.support.newton_runs import B, D, H, T, each_method


class CountedCarry(NamedTuple):
    h: jax.Array
    step: jax.Array


class Counting(Elman):
    """A cell with an integer in its carry."""

    def initial_carry(self, batch_shape=()):
        return CountedCarry(super().initial_carry(batch_shape).h, jnp.zeros(batch_shape, int))

    def __call__(self, params, carry, x):
        new, y = super().__call__(params, ElmanCarry(carry.h), x)
        return CountedCarry(new.h, carry.step + 1), y


def zeros(make, *args):
    """Return zeros with the shapes of `make(*args)`."""
    return jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(functools.partial(make, *args))
    )


CELL, KEY = GRU(D, H), jax.random.key(0)
PARAMS, CARRY, XS = zeros(CELL.init, KEY), zeros(CELL.initial_carry, (B,)), np.ones((T, B, D))
COUNTING = Counting(D, H)


@each_method
@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, r"xs must be floating.*int", {"xs": np.ones((T, B, D), int)}),
        (TypeError, r"mask must be booleans", {"mask": np.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(9, 2\); got \(9,\)", {"resets": np.ones((T,), bool)}),
        (
            ValueError,
            r"carry\.h must be .*\[2, 4\]; got .*\[4\]",
            {"carry": zeros(CELL.initial_carry)},
        ),
        (
            TypeError,
            r"carry\.step must be floating-point; got int64: use unroll",
            {
                "cell": COUNTING,
                "params": zeros(COUNTING.init, KEY),
                "carry": zeros(COUNTING.initial_carry, (B,)),
            },
        ),
        (ValueError, r"max_iterations must be at least 1; got 0", {"max_iterations": 0}),
        (ValueError, r"tolerance must be above 0, or None.*got 0", {"tolerance": 0.0}),
        (ValueError, r"tolerance must be above 0, or None.*got nan", {"tolerance": float("nan")}),
    ],
)
def test_error_messages(unroll_fn, error, words, change):
    given = {"cell": CELL, "params": PARAMS, "carry": CARRY, "xs": XS} | change
    # Unwrapped, because jaxtyping's hook checks the arguments before the library does.
    with pytest.raises(error, match=words):
        inspect.unwrap(unroll_fn)(**given)


@pytest.mark.parametrize("damping", [-0.1, 1.5, float("nan")])
def test_damping_is_between_zero_and_one(damping):
    with pytest.raises(ValueError, match=r"damping must be from 0 .*got"):
        quasi_newton_unroll_with_report(CELL, PARAMS, CARRY, XS, damping=damping)
