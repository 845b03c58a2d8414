"""SnAp-n against its definition, written out densely."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import tbptt
from tbptt.diagnostics import compare_gradients
from tests.test_estimators import READOUT
from tests.test_estimators_online import CELLS, D, full, in_pieces, one_lane, part, same


def dense_snap(loss_fn, params, carry, batch, keeps):
    """J = keeps * (D J + F), J `[n, P]` of one lane; keeps by hand. Plain Jacobians, a Python loop."""
    flat, unravel = ravel_pytree(params)
    start, unravel_carry = ravel_pytree(carry)
    J, grads = np.zeros((start.size, flat.size)), 0

    def step(p, c, piece):
        loss, new = loss_fn(unravel(p), unravel_carry(c), piece)
        new = ravel_pytree(new)[0]
        return (loss, new), new

    both = jax.jit(jax.jacfwd(step, (0, 1), has_aux=True))
    for t in range(len(batch.inputs)):
        (((l_p, l_c), (F, D_t)), start) = jax.tree.map(np.asarray, both(flat, start, part(batch, t, t + 1)))
        grads = grads + l_p + l_c @ J
        J = keeps * (D_t @ J + F)
    return unravel(jnp.asarray(grads / len(batch.inputs)))


def test_snap_1_of_elman_and_lstm_is_its_definition():
    loss_fn, params, carry, batch = one_lane(CELLS["elman"])
    unit = np.concatenate([np.tile(np.arange(4), rows) for rows in (4, D, 1)])  # of w_h, w_x, b: the column
    keeps = np.concatenate([np.arange(4)[:, None] == unit, np.zeros((4, 10), bool)], axis=1)  # the readout reaches none
    _, out = in_pieces(tbptt.snap(loss_fn, 1), params, carry, batch, 7)
    same(out.grads, dense_snap(loss_fn, params, carry, batch, keeps))

    loss_fn, params, carry, batch = one_lane(CELLS["lstm"])
    column = np.concatenate([np.tile(np.arange(12), rows) for rows in (D, 3, 1)])  # gates i, f, g, o of 3 units
    of_unit = np.arange(3)[:, None] == column % 3
    keeps = np.concatenate([of_unit, of_unit & (column < 9)])  # carry (h, c); the output gate enters h alone
    keeps = np.concatenate([keeps, np.zeros((6, 8), bool)], axis=1)
    assert type(params.cell)._fields == ("w_x", "w_h", "b") and type(carry)._fields == ("h", "c")
    _, out = in_pieces(tbptt.snap(loss_fn, 1), params, carry, batch, 7)
    same(out.grads, dense_snap(loss_fn, params, carry, batch, keeps))


def ring_loss(params, carry, batch):
    """A sparse network: unit i hears itself and unit i - 1 of 6; each weight matrix is masked."""
    ring = np.eye(6) + np.eye(6, k=1) + np.eye(6, k=-5)

    def body(h, x):
        h = jnp.tanh(h @ (params["w"] * ring) + x @ params["u"])
        return h, jnp.sum(h**2 * (1 + jnp.arange(6)))

    carry, losses = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(losses), carry


@pytest.mark.parametrize("n", [1, 3, 6])
def test_snap_n_of_a_sparse_network_is_its_definition(n):
    keys = jax.random.split(jax.random.key(3), 3)
    params = {"u": jax.random.normal(keys[0], (2, 6)), "w": jax.random.normal(keys[1], (6, 6))}
    batch = tbptt.Batch(jax.random.normal(keys[2], (9, 2)), jnp.zeros((9, 1)))
    ring = np.eye(6) + np.eye(6, k=1) + np.eye(6, k=-5)
    reach = np.linalg.matrix_power(ring, n - 1) > 0  # from unit, to unit
    column = np.concatenate([np.tile(np.arange(6), 2), np.tile(np.arange(6), 6)])
    alive = np.concatenate([np.ones(12), ring.ravel()]) > 0
    keeps = (reach[column] & alive[:, None]).T
    carry = 0.3 * jnp.arange(6.0)
    _, out = in_pieces(tbptt.snap(ring_loss, n), params, carry, batch, 9)
    want = dense_snap(ring_loss, params, carry, batch, keeps)
    same(out.grads, want)
    assert out.info.kept == pytest.approx(min(n, 6) / 6)
    assert sum(a.size for a in out.memory.influences) == n * (12 + 12)
    exact = compare_gradients(full(ring_loss, params, carry, batch).grads, out.grads).relative_error < 1e-9
    assert exact == (n == 6)


def test_a_table_read_by_symbols_is_learnt_whole():
    cell, embedding = tbptt.Elman(3, 4, gain=1.2), nn.Embed(5, 3, param_dtype=jnp.float64)
    loss_fn = tbptt.sequence_loss(cell, READOUT, tbptt.squared_error, embedding=embedding)
    params = tbptt.init_params(jax.random.key(0), cell, READOUT, embedding)
    symbols = jax.random.randint(jax.random.key(1), (8, 3), 1, 5)  # never the symbol 0
    batch = tbptt.Batch(symbols, jax.random.normal(jax.random.key(2), (8, 3, 2)))
    carry = cell.initial_carry((3,))
    want = full(loss_fn, params, carry, batch).grads
    for factory in (tbptt.rtrl, tbptt.sparse_rtrl):
        same(in_pieces(factory(loss_fn), params, carry, batch, 4)[0], want)


def test_what_a_step_does_only_at_another_symbol_is_learnt_too():
    """A symbol that chooses the weights: at symbol 0 alone, `b` would seem to reach nothing."""

    def switched(params, carry, batch):
        def body(h, symbol):
            chosen = jnp.where(symbol == 1, jnp.tanh(h @ params["b"] + 1), jnp.tanh(h @ params["a"] + 0.3))
            return chosen, jnp.sum(chosen**2)

        carry, losses = jax.lax.scan(body, carry, batch.inputs)
        return jnp.sum(losses), carry

    random = np.random.default_rng(0)
    params = {name: jnp.asarray(random.normal(size=(3, 3))) for name in "ab"}
    batch = tbptt.Batch(jnp.asarray([0, 1, 2, 1, 1, 0]), jnp.zeros((6, 1)))
    want = full(switched, params, jnp.full(3, 0.1), batch).grads
    same(in_pieces(tbptt.sparse_rtrl(switched), params, jnp.full(3, 0.1), batch, 3)[0], want)
