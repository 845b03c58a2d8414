"""SnAp-n equals its definition with dense Jacobians."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tests.estimators.test_online import (
    CELLS,
    D,
    full,
    in_segments,
    one_sequence,
    part,
    relative_error,
    same,
)
from tests.support.estimating import READOUT, raveled


def dense_snap(loss_fn, params, carry, batch, keeps):
    """Compute J = keeps * (D J + F), J `[n, P]` of one sequence, in a Python loop."""
    flat, unravel = raveled(params)
    start, unravel_carry = raveled(carry)
    J, grads = np.zeros((start.size, flat.size)), 0

    def step(p, c, now):
        loss, new = loss_fn(unravel(p), unravel_carry(c), now)
        new = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(new)])
        return (loss, new), new

    both = jax.jit(jax.jacfwd(step, (0, 1), has_aux=True))
    for t in range(len(batch.inputs)):
        (((l_p, l_c), (F, D_t)), start) = jax.tree.map(
            np.asarray, both(flat, start, part(batch, t, t + 1))
        )
        grads = grads + l_p + l_c @ J
        J = keeps * (D_t @ J + F)
    return unravel(grads / len(batch.inputs))


def test_snap_1_of_lstm_is_its_definition():
    loss_fn, params, carry, batch = one_sequence(CELLS["lstm"])
    column = np.concatenate(
        [np.tile(np.arange(12), rows) for rows in (D, 3, 1)]
    )  # gates i, f, g, o of 3 units
    of_unit = np.arange(3)[:, None] == column % 3
    keeps = np.concatenate(
        [of_unit, of_unit & (column < 9)]
    )  # carry (h, c); the output gate enters h alone
    keeps = np.concatenate([keeps, np.zeros((6, 8), bool)], axis=1)
    assert type(params.cell)._fields == ("w_x", "w_h", "b") and type(carry)._fields == ("h", "c")
    _, out = in_segments(tbptt.snap(loss_fn, 1), params, carry, batch, 7)
    same(out.grads, dense_snap(loss_fn, params, carry, batch, keeps))


def ring_loss(params, carry, batch):
    """A sparse network: unit i has inputs from itself and unit i - 1 of 6, by a masked matrix."""
    ring = np.eye(6) + np.eye(6, k=1) + np.eye(6, k=-5)

    def body(h, x):
        h = jnp.tanh(h @ (params["w"] * ring) + x @ params["u"])
        return h, jnp.sum(h**2 * (1 + jnp.arange(6)))

    carry, losses = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(losses), carry


@pytest.mark.parametrize(
    "n",
    [3, pytest.param(6, marks=pytest.mark.exhaustive)],
)
def test_snap_n_of_a_sparse_network_is_its_definition(n):
    random = np.random.default_rng(3)
    params = {"u": random.normal(size=(2, 6)), "w": random.normal(size=(6, 6))}
    batch = tbptt.Batch(random.normal(size=(9, 2)), np.zeros((9, 1)))
    ring = np.eye(6) + np.eye(6, k=1) + np.eye(6, k=-5)
    reached = np.linalg.matrix_power(ring, n - 1) > 0  # from unit, to unit
    column = np.concatenate([np.tile(np.arange(6), 2), np.tile(np.arange(6), 6)])
    is_used = np.concatenate([np.ones(12), ring.ravel()]) > 0
    keeps = (reached[column] & is_used[:, None]).T
    carry = 0.3 * np.arange(6.0)
    _, out = in_segments(tbptt.snap(ring_loss, n), params, carry, batch, 9)
    want = dense_snap(ring_loss, params, carry, batch, keeps)
    same(out.grads, want)
    assert out.info.kept == pytest.approx(min(n, 6) / 6)
    assert sum(a.size for a in out.memory.influences) == n * (12 + 12)
    exact = relative_error(full(ring_loss, params, carry, batch).grads, out.grads) < 1e-9
    assert exact == (n == 6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("factory", [tbptt.estimators.sparse_rtrl, tbptt.rtrl])
def test_every_row_of_an_embedding_gets_its_gradient(factory):
    cell, embedding = tbptt.Elman(3, 4, gain=1.2), nn.Embed(5, 3, param_dtype=jnp.float64)
    loss_fn = tbptt.sequence_loss(cell, READOUT, tbptt.squared_error, embedding=embedding)
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: tbptt.init_params(jax.random.key(0), cell, READOUT, embedding))
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * random.normal(size=a.shape)), shapes)
    symbols = random.integers(1, 5, (8, 3), np.int32)  # never the symbol 0
    batch = tbptt.Batch(*map(jnp.asarray, (symbols, random.normal(size=(8, 3, 2)))))
    carry = jax.tree.map(
        lambda a: jnp.asarray(np.zeros(a.shape)), jax.eval_shape(lambda: cell.initial_carry((3,)))
    )
    want = full(loss_fn, params, carry, batch).grads
    same(in_segments(factory(loss_fn), params, carry, batch, 4)[0], want)


def test_a_branch_that_only_some_symbols_take_is_detected():
    """A symbol selects the weights: at symbol 0, `b` has no derivative."""

    def switched(params, carry, batch):
        def body(h, symbol):
            chosen = jnp.where(
                symbol == 1, jnp.tanh(h @ params["b"] + 1), jnp.tanh(h @ params["a"] + 0.3)
            )
            return chosen, jnp.sum(chosen**2)

        carry, losses = jax.lax.scan(body, carry, batch.inputs)
        return jnp.sum(losses), carry

    random = np.random.default_rng(0)
    params = {name: random.normal(size=(3, 3)) for name in "ab"}
    batch, carry = tbptt.Batch(np.array([0, 1, 2, 1, 1, 0]), np.zeros((6, 1))), np.full(3, 0.1)
    want = full(switched, params, carry, batch).grads
    same(in_segments(tbptt.estimators.sparse_rtrl(switched), params, carry, batch, 3)[0], want)
