"""Online estimators against full BPTT, over whole streams, in whatever pieces they are fed."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import tbptt
from tbptt.diagnostics import compare_gradients
from tests.test_estimators import READOUT
from tests.test_influence_balancing import SIGN, A, N

D, B, T = 2, 3, 6
CELLS = {
    "elman": tbptt.Elman(D, 4, gain=1.2),
    "relu": tbptt.Elman(D, 5, activation=jax.nn.relu),
    "gru": tbptt.GRU(D, 3),
    "gru_before": tbptt.GRUResetBefore(D, 3),
    "lstm": tbptt.LSTM(D, 3),
    "linear": tbptt.DiagonalLinear(D, 4),
    "min_gru": tbptt.MinGRU(D, 4),
    "min_lstm": tbptt.MinLSTM(D, 4),
    "stack": tbptt.Stack((tbptt.LSTM(D, 2), tbptt.GRUResetBefore(2, 3))),
}
DIAGONAL = ("linear", "min_gru", "min_lstm")
SHORT = (CELLS["relu"], CELLS["gru_before"], CELLS["min_gru"], CELLS["min_lstm"])  # fed in two ways, not three
each_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
each_diagonal = pytest.mark.parametrize("cell", [CELLS[name] for name in DIAGONAL], ids=DIAGONAL)
ALL = {"rtrl": tbptt.rtrl, "snap": lambda f: tbptt.snap(f, 1), "sparse_rtrl": tbptt.sparse_rtrl, "uoro": tbptt.uoro}
each_estimator = pytest.mark.parametrize("factory", ALL.values(), ids=ALL.keys())
same = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)


@functools.cache
def problem(cell, extra="all", steps=T, seed=0):
    """Everything random, drawn by NumPy (nothing to compile): biases too, so that no gradient is zero by accident."""
    random, has = np.random.default_rng(seed), lambda name: extra in (name, "all")
    drawn = lambda scale, shape, dtype=float: jnp.asarray(scale * random.normal(size=shape), dtype)  # noqa: E731
    batch = tbptt.Batch(
        inputs=drawn(1, (steps, B, D)),
        targets=drawn(1, (steps, B, 2)),
        weights=jnp.asarray(random.random((steps, B))) if has("weights") else None,
        resets=jnp.asarray(random.random((steps, B)) < 0.2) if has("resets") else None,
        mask=jnp.asarray(random.random((steps, B)) < 0.7) if has("mask") else None,
    )
    shapes = jax.eval_shape(lambda: (tbptt.init_params(jax.random.key(0), cell, READOUT), cell.initial_carry((B,))))
    params, carry = jax.tree.map(lambda a: drawn(0.5, a.shape, a.dtype), shapes)
    return tbptt.sequence_loss(cell, READOUT, tbptt.squared_error), params, carry, batch


def in_pieces(estimator, params, carry, batch, piece, key=None):
    """Feeds a stream; the sum over calls of total weight times gradient, and the last call's Gradient."""
    memory, total, weights = estimator.init(params, carry, batch), 0, 0
    estimate, flat = jax.jit(estimator.estimate), lambda tree: [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    for start in range(0, len(batch.inputs), piece):
        out = estimate(params, memory, part(batch, start, start + piece), key)
        memory, weight = out.memory, np.sum(np.asarray(out.info.weights))
        total = [a + weight * g for a, g in zip(total or [0] * 99, flat(out.grads), strict=False)]
        weights += weight
    return jax.tree.unflatten(jax.tree.structure(params), [g / weights for g in total]), out


def part(batch, start, end):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[start:end]), batch)


def full(loss_fn, params, carry, batch):
    return jax.jit(tbptt.full_bptt(loss_fn).estimate)(params, carry, batch)


def one_lane(cell, steps=7):
    loss_fn, params, carry, batch = problem(cell, "plain", steps=steps)
    carry, batch = jax.tree.map(np.asarray, (carry, batch))
    return (
        loss_fn,
        params,
        *jax.tree.map(jnp.asarray, (jax.tree.map(lambda a: a[0], carry), jax.tree.map(lambda a: a[:, 0], batch))),
    )


@each_cell
def test_rtrl_is_full_bptt_of_the_whole_stream_in_whatever_pieces_it_is_fed(cell):
    loss_fn, params, carry, batch = problem(cell)
    want = full(loss_fn, params, carry, batch)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(want.grads))
    for piece in (1, T) if cell in SHORT else (1, 2, T):
        grads, out = in_pieces(tbptt.rtrl(loss_fn), params, carry, batch, piece)
        same(grads, want.grads)
        same(out.memory.carry, want.memory)
    same(out.loss, want.loss)


@pytest.mark.parametrize("extra", ("plain", "weights", "mask"))
def test_sparse_rtrl_is_full_bptt_with_each_of_the_flags(extra):
    loss_fn, params, carry, batch = problem(CELLS["lstm"], extra)
    want = full(loss_fn, params, carry, batch)
    same(in_pieces(tbptt.sparse_rtrl(loss_fn), params, carry, batch, 3)[0], want.grads)


@pytest.mark.parametrize("cell", [CELLS[name] for name in ("elman", "relu", "gru", "lstm", "stack")])
def test_sparse_rtrl_is_rtrl_and_so_is_snap_of_enough_steps(cell):
    loss_fn, params, carry, batch = problem(cell)
    want = full(loss_fn, params, carry, batch)
    for estimator in (tbptt.sparse_rtrl(loss_fn), *([tbptt.snap(loss_fn, 20)] if cell is CELLS["stack"] else [])):
        grads, out = in_pieces(estimator, params, carry, batch, 3)
        same(grads, want.grads)
        assert out.info.kept == 1


@each_diagonal
def test_snap_1_of_a_diagonal_cell_is_exact_and_keeps_one_number_a_parameter_and_lane(cell):
    loss_fn, params, carry, batch = problem(cell)
    grads, out = in_pieces(tbptt.snap(loss_fn, 1), params, carry, batch, 2)
    same(grads, full(loss_fn, params, carry, batch).grads)
    assert out.info.kept == 1
    (influence,) = out.memory.influences
    assert influence.size == 3 * ravel_pytree(params.cell)[0].size  # 3 lanes


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_snap_1_of_a_dense_cell_is_biased_but_points_the_same_way(name):
    cell = {"elman": CELLS["elman"], "lstm": tbptt.LSTM(D, 8)}[name]  # wide enough that what is dropped matters
    loss_fn, params, carry, batch = problem(cell, steps=12)
    _, out = in_pieces(tbptt.snap(loss_fn, 1), params, carry, batch, 12)
    error = compare_gradients(full(loss_fn, params, carry, batch).grads, out.grads)
    assert 0.5 < error.cosine < 0.9999 and error.relative_error > 0.01
    assert out.info.kept < 0.3


# --- influence balancing, field of the literature's first check


def balancing_loss(params, carry, batch):
    def body(s, _):
        s = jnp.asarray(A) @ s + params["theta"] * jnp.asarray(SIGN)
        return s, 0.5 * (s[0] - 1) ** 2

    carry, losses = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(losses), carry


@pytest.mark.parametrize("name", ["rtrl", "sparse_rtrl"])
def test_influence_balancing_is_full_bptt(name):
    params, batch = {"theta": jnp.array(0.5)}, tbptt.Batch(jnp.zeros((120, 1)), jnp.zeros((120, 1)))
    want = full(balancing_loss, params, jnp.ones(N), batch).grads
    assert abs(want["theta"]) > 1
    for piece in (1, 30):
        same(in_pieces(ALL[name](balancing_loss), params, jnp.ones(N), batch, piece)[0], want)


def test_rtrl_trains_online_where_short_windows_walk_away():
    batch = tbptt.Batch(jnp.zeros((30_000, 1)), jnp.zeros((30_000, 1)))
    estimator, optimizer = tbptt.rtrl(balancing_loss), optax.sgd(1e-4)
    state = tbptt.init_state(estimator, optimizer, {"theta": jnp.array(0.5)}, jnp.ones(N), batch)
    state, _ = tbptt.make_train_epoch(estimator, optimizer, 1)(state, batch)
    assert abs(float(state.params["theta"]) + 1 / 6) < 1e-4


# --- one step, forwards


@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "stack"])
def test_one_step_of_unroll_can_be_differentiated_forwards(name):
    cell = CELLS[name]
    _, params, carry, batch = problem(cell)
    flags = {"resets": jnp.array([[True, False, True]]), "mask": jnp.array([[True, True, False]])}
    flat, back = ravel_pytree((params.cell, carry))
    tangent = jax.random.normal(jax.random.key(0), flat.shape)

    def run(unroll, flat):
        return ravel_pytree(unroll(cell, *back(flat), batch.inputs[:1], **flags))[0]

    value, moved = jax.jvp(functools.partial(run, tbptt.unroll), (flat,), (tangent,))
    step = 1e-6 * tangent
    same(value, run(tbptt.plain_unroll, flat))
    slope = (run(tbptt.plain_unroll, flat + step) - run(tbptt.plain_unroll, flat - step)) / 2e-6
    np.testing.assert_allclose(moved, slope, rtol=1e-6, atol=1e-8)
