"""Online estimators against full BPTT, against rules written out densely, and, where they draw, in the mean."""

import functools
import importlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import tbptt
from tbptt.diagnostics import compare_gradients, estimator_bias
from tbptt.estimators import fits
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


# --- SnAp-n against its definition, densely


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


def one_lane(cell, steps=7):
    loss_fn, params, carry, batch = problem(cell, "plain", steps=steps)
    carry, batch = jax.tree.map(np.asarray, (carry, batch))
    return (
        loss_fn,
        params,
        *jax.tree.map(jnp.asarray, (jax.tree.map(lambda a: a[0], carry), jax.tree.map(lambda a: a[:, 0], batch))),
    )


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


# --- UORO


def scatter(loss_fn, params, carry, batch, draws=20_000):
    """(worst |mean - truth| in standard errors, over the coordinates that scatter; worst error of the others)."""
    estimator = tbptt.uoro(loss_fn)
    memory = estimator.init(params, carry, batch)

    def one(key):
        first, second = jax.random.split(key)
        a = estimator.estimate(params, memory, jax.tree.map(lambda leaf: leaf[:2], batch), first)
        b = estimator.estimate(params, a.memory, jax.tree.map(lambda leaf: leaf[2:], batch), second)
        weights = jnp.sum(a.info.weights), jnp.sum(b.info.weights)
        total = jax.tree.map(lambda g, h: (weights[0] * g + weights[1] * h) / sum(weights), a.grads, b.grads)
        return ravel_pytree(total)[0]

    grads = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), draws))
    want = ravel_pytree(full(loss_fn, params, carry, batch).grads)[0]
    spread = jnp.std(grads, axis=0, ddof=1)
    away, random = jnp.abs(jnp.mean(grads, 0) - want), spread > 1e-12
    in_errors = away / jnp.where(random, spread / np.sqrt(draws), 1)
    return float(jnp.max(jnp.where(random, in_errors, 0))), float(jnp.max(jnp.where(random, 0, away))), int(random.sum())


@pytest.mark.parametrize("name, size", [("elman", 28)])
def test_uoro_is_unbiased_over_a_stream_in_two_pieces(name, size):
    worst, rest, scattering = scatter(*problem(CELLS[name]))
    assert worst < 4 and rest < 1e-12 and scattering == size  # the cell's parameters scatter, the readout's do not


def test_signs_that_are_not_independent_are_seen_to_be_biased(monkeypatch):
    module = importlib.import_module("tbptt.estimators.uoro")

    def lopsided(key, like):
        return [jnp.where(jax.random.bernoulli(key, 0.6, leaf.shape), 1.0, -1.0) for leaf in like]

    monkeypatch.setattr(module, "_signs", lopsided)
    assert scatter(*problem(CELLS["elman"]))[0] > 4


def test_uoro_says_how_long_its_vectors_are_and_keeps_them_balanced():
    loss_fn, params, carry, batch = problem(CELLS["elman"], "plain", steps=40)
    batch = batch._replace(inputs=30 * batch.inputs)  # derivatives by w_x 30 times larger: without balance 0.006 below
    params = params._replace(cell=params.cell._replace(w_x=params.cell.w_x / 30))
    _, out = in_pieces(tbptt.uoro(loss_fn), params, carry, batch, 40, jax.random.key(0))
    same(out.info.s_norm, jnp.linalg.norm(ravel_pytree(out.memory.s)[0]))
    same(out.info.theta_norm, jnp.linalg.norm(ravel_pytree(out.memory.theta)[0]))
    assert 0.5 < out.info.s_norm / out.info.theta_norm < 2


def test_uoro_survives_a_step_through_which_nothing_passes():
    loss_fn, params, carry, batch = problem(CELLS["elman"], "plain")
    batch = batch._replace(resets=jnp.ones((T, 3), bool), mask=jnp.arange(T)[:, None] != jnp.full((1, 3), 2))
    grads, out = in_pieces(tbptt.uoro(loss_fn), params, carry, batch, 1, jax.random.key(0))
    same(grads, full(loss_fn, params, carry, batch).grads)  # after a reset s . dl/dcarry is exactly 0
    chex.assert_tree_all_finite(out)


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


# --- the local rules


def test_the_exact_gradient_of_a_local_lstm_is_e_prop():
    """e_t = f_t e_{t-1} + dc_t/dparams at a held carry;  g = sum_t dl_t/dc_t e_t + dl_t/dparams at held h, c_t."""
    cell = tbptt.LocalLSTM(D, 3)
    loss_fn, params, carry, batch = one_lane(cell)
    lstm_loss = tbptt.sequence_loss(tbptt.LSTM(D, 3), READOUT, tbptt.squared_error)
    flat, unravel = ravel_pytree(params)
    trace, grads, now = np.zeros((3, flat.size)), 0, carry

    def loss_and_c(p, c, now, piece):
        loss, new = lstm_loss(unravel(p), now._replace(c=c), piece)
        return (loss, new.c), new

    both = jax.jit(jax.jacfwd(loss_and_c, (0, 1), has_aux=True))
    for t in range(7):
        ((l_p, l_c), (c_p, c_c)), new = both(flat, now.c, now, part(batch, t, t + 1))
        np.testing.assert_allclose(c_c, np.diag(np.diag(c_c)), atol=1e-15)  # the forget gates
        grads = grads + np.asarray(l_p) + np.asarray(l_c) @ trace
        trace, now = np.asarray(c_c) @ trace + np.asarray(c_p), new
    want = unravel(jnp.asarray(grads / 7))
    for factory in (tbptt.rtrl, tbptt.sparse_rtrl, tbptt.full_bptt):
        _, out = in_pieces(factory(loss_fn), params, carry, batch, 7)
        same(out.grads, want)
    assert compare_gradients(full(lstm_loss, params, carry, batch).grads, want).relative_error > 0.01


@pytest.mark.parametrize("local, whole", [(tbptt.LocalLSTM, tbptt.LSTM), (tbptt.LocalGRU, tbptt.GRU)])
def test_local_cells_run_like_the_whole_ones_at_a_diagonal_price(local, whole):
    loss_fn, params, carry, batch = problem(local(D, 3))
    other = tbptt.sequence_loss(whole(D, 3), READOUT, tbptt.squared_error)
    same(loss_fn(params, carry, batch), other(params, carry, batch))
    grads, out = in_pieces(tbptt.sparse_rtrl(loss_fn), params, carry, batch, 3)
    same(grads, full(loss_fn, params, carry, batch).grads)
    P = ravel_pytree(params.cell)[0].size
    # One number a parameter, two where an LSTM's c and h both remember it within the step: h is forgotten by the next.
    assert sum(a.size for a in out.memory.influences) <= 3 * P * (2 if local is tbptt.LocalLSTM else 1)
    assert compare_gradients(full(other, params, carry, batch).grads, grads).relative_error > 0.01


def test_the_exact_gradient_of_a_leaky_network_cut_between_its_units_is_rflo():
    """Murray 2019: p_t = (1 - a) p_{t-1} + a f'(u_t) h_{t-1} or x_t;  g = sum_t (dl_t/dh_t) p_t."""
    leak, keys = 0.3, jax.random.split(jax.random.key(4), 4)
    params = {"u": jax.random.normal(keys[0], (2, 4)), "w": jax.random.normal(keys[1], (4, 4))}
    batch = tbptt.Batch(jax.random.normal(keys[2], (8, 2)), jax.random.normal(keys[3], (8, 4)))

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
    _, out = in_pieces(tbptt.sparse_rtrl(loss_fn), params, jnp.full(4, 0.2), batch, 4)
    grads, _ = in_pieces(tbptt.sparse_rtrl(loss_fn), params, jnp.full(4, 0.2), batch, 4)
    same(grads, jax.tree.map(jnp.asarray, want))
    assert [a.shape for a in out.memory.influences] == [(1, 4, 6, 1)]


# --- the contract


def equations(jaxpr):
    inside = [getattr(leaf, "jaxpr", leaf) for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values()))]
    return len(jaxpr.eqns) + sum(equations(part) for part in inside if hasattr(part, "eqns"))


@each_estimator
def test_memory_and_program_do_not_grow_with_T(factory):
    loss_fn, params, carry, batch = problem(CELLS["lstm"], steps=40)
    estimator, key = factory(loss_fn), jax.random.key(0)

    def sizes(steps):
        piece = jax.tree.map(lambda a: a[:steps], batch)
        memory = jax.eval_shape(estimator.init, params, carry, piece)
        traced = equations(jax.make_jaxpr(estimator.estimate)(params, memory, piece, key).jaxpr)
        out = jax.eval_shape(estimator.estimate, params, memory, piece, key)
        chex.assert_trees_all_equal_shapes_and_dtypes(out.memory, memory)
        return traced, memory

    (short, a), (long, b) = sizes(3), sizes(40)
    assert short == long > 100
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)


@each_estimator
def test_float32_stays_float32(factory):
    cell = tbptt.LSTM(D, 4, dtype=jnp.float32)
    loss_fn, *point = problem(cell)
    params, carry, batch = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, point)
    estimator = factory(loss_fn)
    memory = estimator.init(params, carry, jax.eval_shape(lambda: batch))
    out = jax.eval_shape(estimator.estimate, params, memory, batch, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((out.loss, out.grads, out.memory))} == {jnp.dtype(jnp.float32)}


@each_estimator
def test_works_inside_jit_scan_and_a_train_epoch(factory):
    loss_fn, params, carry, batch = problem(CELLS["gru"], "weights")
    estimator, optimizer = factory(loss_fn), optax.sgd(0.05)

    @jax.jit
    def everything(params, carry, batch):  # nothing is concrete here: the pattern is found all the same
        state = tbptt.init_state(estimator, optimizer, params, carry, batch, key=jax.random.key(0))
        return tbptt.make_train_epoch(estimator, optimizer, 1)(state, batch)

    state, metrics = everything(params, carry, batch)
    state_, memory = params, estimator.init(params, carry, batch)
    if factory is not tbptt.uoro:  # which keys an epoch draws is its own affair
        estimate = jax.jit(estimator.estimate)
        for t in range(T):
            out = estimate(state_, memory, part(batch, t, t + 1))
            memory, state_ = out.memory, jax.tree.map(lambda p, g: jnp.asarray(p - 0.05 * np.asarray(g)), state_, out.grads)
        same(state.params, state_)
    chex.assert_tree_all_finite((state.params, metrics))
    assert compare_gradients(params, state.params).relative_error > 1e-3


def test_estimator_bias_measures_online_estimators():
    loss_fn, params, carry, batch = problem(CELLS["elman"], steps=12)
    reference = tbptt.full_bptt(loss_fn)

    def measure(estimator, key=None):
        return jax.jit(lambda *point: estimator_bias(estimator, reference, *point, piece=2, key=key))(params, carry, batch)

    assert measure(tbptt.rtrl(loss_fn)).bias.relative_error < 1e-12
    assert measure(tbptt.uoro(loss_fn), jax.random.key(0)).variance > 0


def counting_loss(params, carry, batch):
    """A carry with a counter and a key, which decide when and how the recurrence is kicked."""

    def body(carry, x):
        h, t, key = carry
        key, use = jax.random.split(key)
        h = jnp.tanh(h @ params["w"] + x * (t % 2) + 0.1 * jax.random.normal(use, h.shape))
        return (h, t + 1, key), jnp.sum(h**2)

    carry, losses = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(losses), carry


def test_counters_and_keys_in_a_carry_are_carried_along():
    params, batch = {"w": jax.random.normal(jax.random.key(1), (3, 3))}, tbptt.Batch(jnp.ones((6, 1)), jnp.zeros((6, 1)))
    carry = (0.2 * jnp.arange(3.0), jnp.zeros((), int), jax.random.key(7))
    want = full(counting_loss, params, carry, batch)
    for factory in (tbptt.rtrl, tbptt.sparse_rtrl, tbptt.uoro):
        grads, out = in_pieces(factory(counting_loss), params, carry, batch, 2, jax.random.key(0))
        assert out.memory.carry[1] == 6 and out.memory.carry[2] == want.memory[2]
        if factory is not tbptt.uoro:
            same(grads, want.grads)


# --- what is refused


@each_estimator
def test_a_loss_function_without_a_forward_derivative_is_refused_at_the_door(factory):
    cell = tbptt.ClippedCell(CELLS["elman"], 1.0)
    _, params, carry, batch = problem(CELLS["elman"])
    clipped = tbptt.sequence_loss(cell, READOUT, tbptt.squared_error)
    with pytest.raises(TypeError, match=r"loss_fn holds a backward pass of its own.*jax\.jvp.*plain_unroll"):
        factory(clipped).init(params, carry, batch)

    def calls_home(params, carry, batch):
        loss, carry = problem(CELLS["elman"])[0](params, carry, batch)
        return jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct((), loss.dtype), loss), carry

    with pytest.raises(TypeError, match=r"calls_home has no forward derivative \(jax\.jvp\).*plain_unroll"):
        factory(calls_home).init(params, carry, batch)


@each_estimator
def test_misuse_is_named(factory):
    loss_fn, params, carry, batch = problem(CELLS["elman"])
    with pytest.raises(TypeError, match=r"params\['n'\] must be floating.*int"):
        factory(lambda p, c, b: loss_fn(p["p"], c, b)).init({"n": jnp.zeros((), int), "p": params}, carry, batch)
    with pytest.raises(TypeError, match=r"carry.* is complex.*real.*imaginary"):
        factory(lambda p, c, b: (jnp.sum(jnp.abs(c)), c)).init(params, jnp.ones((3, 2), complex), batch)
    estimator = factory(lambda p, c, b: loss_fn(p, c, b)[0])
    with pytest.raises(TypeError, match=r"<lambda> must return a pair"):
        estimator.init(params, carry, batch)


def test_uoro_needs_a_key_and_snap_a_number():
    loss_fn, params, carry, batch = problem(CELLS["elman"])
    estimator = tbptt.uoro(loss_fn)
    with pytest.raises(ValueError, match=r"uoro draws random signs.*needs a key; got None.*init_state\(\.\.\., key="):
        estimator.estimate(params, estimator.init(params, carry, batch), batch)
    snap = getattr(tbptt.snap, "__wrapped__", tbptt.snap)
    with pytest.raises(ValueError, match="n must be at least 1"):
        snap(loss_fn, 0)
    with pytest.raises(TypeError, match="n must be a Python int"):
        snap(loss_fn, 1.0)


def test_influences_that_do_not_fit_are_refused_in_bytes_before_they_are_made(monkeypatch):
    """By shapes alone: three times the influences of this LSTM are 26 terabytes."""
    cell = tbptt.LSTM(512, 512, dtype=jnp.float32)
    loss_fn = tbptt.sequence_loss(cell, READOUT, tbptt.squared_error)
    params = jax.eval_shape(lambda: tbptt.init_params(jax.random.key(0), cell, READOUT))
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    batch = jax.eval_shape(lambda: tbptt.Batch(zeros((4, 1000, 512)), zeros((4, 1000, 2))))
    carry = jax.eval_shape(lambda: cell.initial_carry((1000,)))
    P, numbers = 4 * 512 * (512 + 512 + 1) + 2 * 513, 2 * 512 * 1000
    fitting = rf"{P:,} parameters on a carry of {numbers:,} numbers.* need {3 * 4 * P * numbers:,} bytes"
    with pytest.raises(ValueError, match=rf"rtrl's influences of {fitting}; this device has [\d,]+\. Use snap.*uoro"):
        jax.eval_shape(tbptt.rtrl(loss_fn).init, params, carry, batch)
    jax.eval_shape(tbptt.uoro(loss_fn).init, params, carry, batch)

    loss_fn, params, carry, batch = problem(CELLS["lstm"])
    need = 3 * 8 * ravel_pytree(params)[0].size * 6 * B  # three arrays of float64
    tbptt.rtrl(loss_fn, max_bytes=need).init(params, carry, batch)
    with pytest.raises(ValueError, match=rf"need {need:,} bytes; max_bytes allows {need - 1:,}"):
        tbptt.rtrl(loss_fn, max_bytes=need - 1).init(params, carry, batch)
    for factory in (tbptt.sparse_rtrl, ALL["snap"]):
        estimator = factory(loss_fn)
        kept = sum(a.size for a in estimator.init(params, carry, batch).influences)
        monkeypatch.setattr(fits, "device_bytes", lambda kept=kept: 3 * 8 * kept - 1)
        with pytest.raises(ValueError, match=rf"{kept // B:,} numbers in each of 3 lanes.* need {3 * 8 * kept:,} bytes"):
            estimator.init(params, carry, batch)
        monkeypatch.setattr(fits, "device_bytes", lambda: 99)
        with pytest.raises(ValueError, match=r"the pattern of .*loss_fn, \d+ parameters by 6 numbers"):
            factory(loss_fn).init(params, carry, batch)
        monkeypatch.undo()


def test_lanes_that_exchange_numbers_are_refused_by_snap_and_right_with_rtrl():
    loss_fn, params, carry, batch = problem(CELLS["elman"], "plain")

    def mixing(params, carry, batch):
        def body(carry, now):
            carry = jax.tree.map(lambda h: h - 0.5 * jnp.mean(h, axis=0), carry)
            loss, carry = loss_fn(params, carry, jax.tree.map(lambda a: a[None], now))
            return carry, loss

        carry, losses = jax.lax.scan(body, carry, batch)
        return jnp.sum(losses), carry

    with pytest.raises(ValueError, match=r"mixing the lanes of a batch exchange numbers.*Use rtrl"):
        tbptt.snap(mixing, 1).init(params, carry, batch)
    same(in_pieces(tbptt.rtrl(mixing), params, carry, batch, 2)[0], full(mixing, params, carry, batch).grads)
    with pytest.raises(ValueError, match=r"carry.* must be \[\*batch, \.\.\.\] with \*batch = \(3,\).*\(7,\)"):
        tbptt.snap(lambda p, c, b: (jnp.sum(c), c), 1).init(params, jnp.ones((7,)), batch)


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
