"""Arguments of `unroll` that do not fit are named, with the remedy."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import LSTM, Elman
from tbptt.unroll import Segments, unroll
from tests.support.problems import B, D, H, T


class Forgetful(Elman):
    """An invalid cell, which returns a carry of another structure."""

    def __call__(self, params, carry, x):
        return (carry.h,), carry.h


def zeros(make, *args):
    """Return zeros with the shapes of `make(*args)`."""
    return jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(functools.partial(make, *args))
    )


def carry_of(cell, batch_shape=(B,)):
    return zeros(cell.initial_carry, batch_shape)


CELL, F32 = LSTM(D, H), LSTM(D, H, dtype=jnp.float32)
CARRY = carry_of(CELL)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (
            TypeError,
            r"xs must be floating.*int.*embed integer symbols",
            {"xs": np.ones((T, B, D), int)},
        ),
        (
            ValueError,
            r"xs must be .*LSTM.input_dim = 3; got shape \(7, 2, 4\)",
            {"xs": np.ones((T, B, 4))},
        ),
        (ValueError, r"xs must be \[T, \*batch, D\].*got shape \(3,\)", {"xs": np.ones((D,))}),
        (
            TypeError,
            r"resets must be booleans.*float64: use resets > 0",
            {"resets": np.ones((T, B))},
        ),
        (TypeError, r"mask must be booleans.*int.*: use mask > 0", {"mask": np.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(7, 2\); got \(7,\)", {"resets": np.ones((T,), bool)}),
        (ValueError, r"mask must have .* \(7, 2\); got \(2, 7\)", {"mask": np.ones((B, T), bool)}),
        (ValueError, r"carry must have the structure", {"carry": CARRY.h}),
        (
            ValueError,
            r"carry\.h must be .*\[2, 4\]; got .*\[4\]\..*time first.*initial_carry\(\(2,\)\)",
            {"carry": carry_of(CELL, ())},
        ),
        (
            ValueError,
            r"carry\.c must be float64.*; got float32",
            {"carry": CARRY._replace(c=carry_of(F32).c)},
        ),
        (
            ValueError,
            r"carry that LSTM returned\.h must be float32.*; got float64.*xs is float64",
            {"cell": F32},
        ),
        (
            ValueError,
            r"carry that Forgetful returned must have the structure",
            {"cell": Forgetful(D, H)},
        ),
    ],
)
def test_error_messages(error, words, change):
    cell = change.get("cell", CELL)
    params = zeros(cell.init, jax.random.key(0))
    given = {
        "cell": cell,
        "params": params,
        "carry": carry_of(cell),
        "xs": np.ones((T, B, D)),
    } | change
    # Unwrapped, because jaxtyping's hook checks the arguments before the library does.
    with pytest.raises(error, match=words):
        inspect.unwrap(unroll)(**given)


def test_segment_length_is_at_least_one():
    with pytest.raises(ValueError, match=r"Segments.length must be at least 1 step.*got 0"):
        Segments(0)
