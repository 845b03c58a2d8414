"""Errors of estimators name the argument and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tests.support.estimating import CELLS, make


def estimate(estimator, params, carry, batch):
    """Estimate by shapes only, without compilation."""

    def first(params, carry, batch):
        return estimator.estimate(params, estimator.init(params, carry, batch), batch)

    return jax.eval_shape(first, params, carry, batch)


@pytest.mark.parametrize("k1, k2", [(5, 5), (5, 9), (24, 24)])
def test_T_must_be_a_multiple_of_k1(k1, k2):
    loss_fn, params, carry, batch = make(CELLS["lstm"])
    with pytest.raises(ValueError, match=rf"T=12, k1={k1}.*weights=0"):
        estimate(tbptt.truncated_bptt(loss_fn, k1, k2), params, carry, batch)


@pytest.mark.parametrize(
    "k1, k2, error, match",
    [
        (0, 4, ValueError, "k1 must be at least 1"),
        (4, 0, ValueError, "k2 must be at least 1"),
        (-1, 4, ValueError, "k1=-1"),
        (2.0, 4, TypeError, "k1 must be a Python int.*2.0"),
        (2, True, TypeError, "k2 must be a Python int"),
        (2, "4", TypeError, "k2 must be a Python int"),
    ],
)
def test_windows_are_static_positive_ints(k1, k2, error, match):
    # Unwrapped: in tests beartype checks annotations first, and its message differs from ours.
    function = getattr(tbptt.truncated_bptt, "__wrapped__", tbptt.truncated_bptt)
    with pytest.raises(error, match=match):
        function(make(CELLS["lstm"])[0], k1, k2)


def test_a_loss_function_with_a_wrong_return_value_is_named():
    _, params, carry, batch = make(CELLS["lstm"])

    def only_loss(params, carry, batch):
        return jnp.zeros(())

    def a_vector(params, carry, batch):
        return jnp.zeros((3,)), carry

    def an_integer(params, carry, batch):
        return jnp.zeros((), int), carry

    def another_carry(params, carry, batch):
        return jnp.zeros(()), carry.h

    def a_wider_carry(params, carry, batch):
        return jnp.zeros(()), carry._replace(c=jnp.zeros((B_WRONG, 4)))

    B_WRONG = 7
    cases = [
        (only_loss, TypeError, r"only_loss must return a pair"),
        (a_vector, TypeError, r"a_vector must return a floating scalar.*\(3,\)"),
        (an_integer, TypeError, r"an_integer must return a floating scalar.*int"),
        (another_carry, ValueError, r"another_carry must return a carry of the same structure"),
        (a_wider_carry, ValueError, r"a_wider_carry must return carry\.c.*\[3, 4\].*\[7, 4\]"),
    ]
    for loss_fn, error, match in cases:
        for estimator in (
            tbptt.full_bptt(loss_fn),
            tbptt.truncated_bptt(loss_fn, 3, 3),
            tbptt.truncated_bptt(loss_fn, 3, 5),
        ):
            with pytest.raises(error, match=match):
                estimate(estimator, params, carry, batch)


def test_batch_and_carry_that_disagree():
    loss_fn, params, _, batch = make(CELLS["lstm"])
    with pytest.raises(
        ValueError,
        match=r"carry\.h must be float64\[3, 4\]; got float64\[5, 4\].*initial_carry\(\(3,\)\)",
    ):
        estimate(tbptt.full_bptt(loss_fn), params, CELLS["lstm"].initial_carry((5,)), batch)


def test_leaves_of_unequal_length_and_wrong_rank():
    loss_fn, params, carry, batch = make(CELLS["lstm"])
    with pytest.raises(ValueError, match=r"inputs has T=12.*targets has T=11"):
        estimate(
            tbptt.full_bptt(loss_fn),
            params,
            carry,
            batch._replace(targets=np.asarray(batch.targets)[:11]),
        )
    with pytest.raises(
        ValueError,
        match=r"xs must be \[T, \*batch, D\].*D = LSTM.input_dim = 2; got shape \(12, 3, 1\)",
    ):
        estimate(
            tbptt.full_bptt(loss_fn),
            params,
            carry,
            batch._replace(inputs=np.asarray(batch.inputs)[..., :1]),
        )
