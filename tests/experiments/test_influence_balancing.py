"""Tests of TBPTT on influence balancing (Tallec and Ollivier).

    s' = A s + theta sign,    A = I/2 + superdiagonal/2 (n = 23)
    sign = +1 (10 states), -1 (13),    L = (s_0 - 1)^2 / 2

A loss at age k = k2 - k1 + 1 .. k2 of the window has ds_0/dtheta = D_k = sum_{j < k} e_0 A^j sign,
and D_inf = -6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt

N, P = 23, 10
A = 0.5 * np.eye(N) + 0.5 * np.eye(N, k=1)
SIGN = np.where(np.arange(N) < P, 1.0, -1.0)


def closed_form(steps):
    row, total, D = np.eye(N)[0], 0.0, []
    for _ in range(steps):
        total += row @ SIGN
        D.append(total)
        row = row @ A
    return np.array(D)


def linear_loss(params, carry, batch):
    """Compute L = s_0, whose gradient by theta is ds_0/dtheta."""

    def body(s, _):
        s = jnp.asarray(A) @ s + params["theta"] * jnp.asarray(SIGN)
        return s, s[0]

    carry, s_0 = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(s_0), carry


def derivative(k1, k2, warm=2):
    """Return the mean derivative of the last window, when the stream is longer than k2."""
    windows = -(-k2 // k1) + warm
    steps, params = np.zeros((windows * k1, 1)), {"theta": np.asarray(0.5)}
    estimator = tbptt.truncated_bptt(linear_loss, k1, k2)

    def last_window(params):
        early, late = tbptt.Batch(steps[:-k1], steps[:-k1]), tbptt.Batch(steps[:k1], steps[:k1])
        memory = estimator.estimate(
            params, estimator.init(params, jnp.ones(N), early), early
        ).memory
        return estimator.estimate(params, memory, late).grads["theta"]

    return float(jax.jit(last_window)(params))


@pytest.mark.parametrize(
    "k1, k2",
    [
        (7, 33),  # test_estimators.py has the pairs (10, 100), (100, 100), (1, 41)
        *(pytest.param(*pair, marks=pytest.mark.exhaustive) for pair in [(10, 50), (50, 100)]),
    ],
)
def test_the_truncated_derivative_is_the_closed_form(k1, k2):
    want = closed_form(k2)[k2 - k1 :].mean()
    assert derivative(k1, k2) == pytest.approx(want, abs=1e-9)


def test_k1_below_k2_has_the_correct_sign_where_k1_equal_to_k2_has_not():
    D = closed_form(100)
    # K1 = 10: exact to 2 places, as A^j is negligible.
    assert D[90:].mean() == pytest.approx(-6.0, abs=0.01)
    assert D.mean() == pytest.approx(0.58, abs=0.005)  # k1 = k2 = 100
    assert D[39] > 0 > D[40]  # k1 = 1, k2 = 40 and 41
