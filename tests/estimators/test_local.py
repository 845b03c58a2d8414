"""Online estimators of cells without gradients between units equal e-prop and RFLO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tests.estimators.test_online import (
    D,
    full,
    in_segments,
    one_sequence,
    part,
    problem,
    relative_error,
    same,
)
from tests.support.estimating import READOUT, raveled


@pytest.mark.parametrize(
    "factory",
    [
        tbptt.estimators.sparse_rtrl,
        *(pytest.param(f, marks=pytest.mark.exhaustive) for f in (tbptt.rtrl, tbptt.full_bptt)),
    ],
)
def test_the_exact_gradient_of_a_local_lstm_is_e_prop(factory):
    """Compare with e-prop, where all derivatives by params are at a constant carry.

    e_t = f_t e_{t-1} + dc_t/dparams,    g = sum_t dl_t/dc_t e_t + dl_t/dparams
    """
    cell = tbptt.cells.LocalLSTM(D, 3)
    loss_fn, params, carry, batch = one_sequence(cell)
    lstm_loss = tbptt.sequence_loss(tbptt.LSTM(D, 3), READOUT, tbptt.squared_error)
    flat, unravel = raveled(params)
    trace, grads, now = np.zeros((3, flat.size)), 0, carry

    def loss_and_c(p, c, now, step):
        loss, new = lstm_loss(unravel(p), now._replace(c=c), step)
        return (loss, new.c), new

    both = jax.jit(jax.jacfwd(loss_and_c, (0, 1), has_aux=True))
    for t in range(7):
        ((l_p, l_c), (c_p, c_c)), new = both(flat, now.c, now, part(batch, t, t + 1))
        np.testing.assert_allclose(c_c, np.diag(np.diag(c_c)), atol=1e-15)  # the forget gates
        grads = grads + np.asarray(l_p) + np.asarray(l_c) @ trace
        trace, now = np.asarray(c_c) @ trace + np.asarray(c_p), new
    want = unravel(grads / 7)
    _, out = in_segments(factory(loss_fn), params, carry, batch, 7)
    same(out.grads, want)
    assert relative_error(full(lstm_loss, params, carry, batch).grads, want) > 0.01


@pytest.mark.parametrize(
    "local, whole",
    [
        pytest.param(tbptt.cells.LocalLSTM, tbptt.LSTM, marks=pytest.mark.exhaustive),
        (tbptt.cells.LocalGRU, tbptt.GRU),
    ],
)
def test_local_cells_have_the_values_of_whole_ones_and_a_diagonal_influence(local, whole):
    loss_fn, params, carry, batch = problem(local(D, 3))
    other = tbptt.sequence_loss(whole(D, 3), READOUT, tbptt.squared_error)
    graded = [jax.value_and_grad(loss, has_aux=True) for loss in (loss_fn, other)]
    ours, theirs = jax.jit(lambda *given: [g(*given) for g in graded])(params, carry, batch)
    same(ours[0], theirs[0])
    assert relative_error(theirs[1], ours[1]) > 0.01
    estimator = tbptt.estimators.sparse_rtrl(loss_fn)
    memory = jax.eval_shape(estimator.init, params, carry, batch)
    P = raveled(params.cell)[0].size
    # One number per parameter; two in an LSTM, where a parameter enters both c and h in a step.
    assert sum(a.size for a in memory.influences) <= 3 * P * (
        2 if local is tbptt.cells.LocalLSTM else 1
    )


def test_the_exact_gradient_of_a_leaky_network_without_gradients_between_units_is_rflo():
    """Murray 2019: p_t = (1 - a) p_{t-1} + a f'(u_t) h_{t-1} or x_t;  g = sum_t (dl_t/dh_t) p_t."""
    leak, random = 0.3, np.random.default_rng(4)
    draw = lambda *shape: random.normal(size=shape)  # noqa: E731
    params, batch = {"u": draw(2, 4), "w": draw(4, 4)}, tbptt.Batch(draw(8, 2), draw(8, 4))

    def loss_fn(params, carry, batch):
        def body(h, now):
            x, target = now
            a = jax.lax.stop_gradient(h) @ params["w"] + x @ params["u"]
            h = (1 - leak) * h + leak * jnp.tanh(a)
            return h, 0.5 * jnp.sum((h - target) ** 2)

        carry, losses = jax.lax.scan(body, carry, (batch.inputs, batch.targets))
        return jnp.sum(losses), carry

    h, p, q, want = np.full(4, 0.2), np.zeros((4, 4)), np.zeros((2, 4)), {"u": 0, "w": 0}
    for x, target in zip(np.asarray(batch.inputs), np.asarray(batch.targets), strict=True):
        a = h @ np.asarray(params["w"]) + x @ np.asarray(params["u"])
        p = (1 - leak) * p + leak * np.outer(h, 1 - np.tanh(a) ** 2)
        q = (1 - leak) * q + leak * np.outer(x, 1 - np.tanh(a) ** 2)
        h = (1 - leak) * h + leak * np.tanh(a)
        want = {"u": want["u"] + (h - target) * q / 8, "w": want["w"] + (h - target) * p / 8}
    grads, out = in_segments(
        tbptt.estimators.sparse_rtrl(loss_fn), params, np.full(4, 0.2), batch, 4
    )
    same(grads, want)
    assert [a.shape for a in out.memory.influences] == [(1, 4, 6, 1)]
