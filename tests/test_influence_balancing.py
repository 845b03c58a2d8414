"""The system on which k1 != k2 decides the SIGN of the gradient (Tallec and Ollivier's influence balancing).

    s' = A s + theta sign,    A = I/2 + superdiagonal/2 (n = 23),    sign = +1 (10 states), -1 (13),    L = (s_0 - 1)^2 / 2

A loss at age k2 - k1 + 1 .. k2 of the window sees ds_0/dtheta = D_k = sum_{j < k} e_0 A^j sign. D_inf = -6.
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
    """L = s_0, so that the gradient by theta is ds_0/dtheta itself."""

    def body(s, _):
        s = jnp.asarray(A) @ s + params["theta"] * jnp.asarray(SIGN)
        return s, s[0]

    carry, s_0 = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(s_0), carry


def derivative(k1, k2, warm=2):
    """The mean derivative of the last window, once the stream is older than k2."""
    windows = -(-k2 // k1) + warm
    T = windows * k1
    batch = tbptt.Batch(jnp.zeros((T, 1)), jnp.zeros((T, 1)))
    params = {"theta": jnp.array(0.5)}
    estimator = tbptt.truncated_bptt(linear_loss, k1, k2)
    early = jax.tree.map(lambda a: a[: T - k1], batch)
    memory = estimator.estimate(params, estimator.init(params, jnp.ones(N), batch), early).memory
    return float(estimator.estimate(params, memory, jax.tree.map(lambda a: a[:k1], batch)).grads["theta"])


@pytest.mark.parametrize("k1, k2", [(10, 100), (100, 100), (1, 40), (1, 41), (10, 50), (50, 100), (110, 110), (7, 33)])
def test_the_truncated_derivative_is_the_closed_form(k1, k2):
    want = closed_form(k2)[k2 - k1 :].mean()
    assert derivative(k1, k2) == pytest.approx(want, abs=1e-9)


def test_k1_unlike_k2_has_the_right_sign_where_k1_equal_k2_has_not():
    assert derivative(10, 100) == pytest.approx(-6.0, abs=0.01)  # exact to 2 places: A^j has died out
    assert derivative(100, 100) == pytest.approx(0.58, abs=0.005)
    assert derivative(1, 40) > 0 > derivative(1, 41)


def train(k1, k2, lr, steps):
    def loss(params, carry, batch):
        def body(s, _):
            s = jnp.asarray(A) @ s + params["theta"] * jnp.asarray(SIGN)
            return s, 0.5 * (s[0] - 1) ** 2

        carry, losses = jax.lax.scan(body, carry, batch.inputs)
        return jnp.sum(losses), carry

    import optax

    batch = tbptt.Batch(jnp.zeros((steps, 1)), jnp.zeros((steps, 1)))
    estimator, optimizer = tbptt.truncated_bptt(loss, k1, k2), optax.sgd(lr)
    state = tbptt.init_state(estimator, optimizer, {"theta": jnp.array(0.5)}, jnp.ones(N), batch)
    state, _ = tbptt.make_train_epoch(estimator, optimizer, k1)(state, batch)
    return float(state.params["theta"])


def test_online_training_converges_with_k2_of_100_and_k1_of_10_and_moves_away_with_100_and_100():
    # 30,000 updates of k1 = 10 steps; each update takes the MEAN over its k1 new steps.
    assert abs(train(10, 100, 1e-4, 300_000) + 1 / 6) < 1e-4
    assert train(100, 100, 1e-4, 300_000) > 0.5
