"""Online estimators equal full BPTT over whole streams, for any split into calls."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tbptt.diagnostics import compare_gradients
from tests.experiments.test_influence_balancing import SIGN, A, N
from tests.support.estimating import make, raveled

D, B, T = 2, 3, 6
CELLS = {
    "elman": tbptt.Elman(D, 4, gain=1.2),
    "gru": tbptt.GRU(D, 3),
    "lstm": tbptt.LSTM(D, 3),
    "linear": tbptt.DiagonalLinear(D, 4),
    "min_gru": tbptt.MinGRU(D, 4),
    "min_lstm": tbptt.MinLSTM(D, 4),
    "stack": tbptt.Stack((tbptt.LSTM(D, 2), tbptt.cells.GRUResetBefore(2, 3))),
}
exhaustive = pytest.mark.exhaustive


def cells(*few, of=tuple(CELLS)):
    """Parametrise over all cells; those not among the few are exhaustive tests."""
    marks = lambda name: [] if name in few else exhaustive  # noqa: E731
    return pytest.mark.parametrize(
        "cell", [pytest.param(CELLS[name], marks=marks(name), id=name) for name in of]
    )


ALL = {
    "rtrl": tbptt.rtrl,
    "snap": lambda f: tbptt.snap(f, 1),
    "sparse_rtrl": tbptt.estimators.sparse_rtrl,
    "uoro": tbptt.uoro,
}
each_estimator = pytest.mark.parametrize("factory", ALL.values(), ids=ALL.keys())
same = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)


def problem(cell, extra="all", steps=T, seed=0):
    return make(cell, extra, seed, steps)


@functools.cache
def compiled(estimator):
    return jax.jit(estimator.init), jax.jit(estimator.estimate)


def in_segments(estimator, params, carry, batch, segment, key=None):
    """Return the weighted mean gradient over all calls, and the Gradient of the last, in numpy."""
    init, estimate = compiled(estimator)
    memory, total, weights = init(params, carry, batch), None, 0
    batch = jax.tree.map(np.asarray, batch)
    for start in range(0, len(batch.inputs), segment):
        out = estimate(params, memory, part(batch, start, start + segment), key)
        memory, weight = out.memory, np.sum(np.asarray(out.info.weights))
        each = jax.tree.map(lambda g, w=weight: w * np.asarray(g), out.grads)
        total, weights = (
            each if total is None else jax.tree.map(np.add, total, each),
            weights + weight,
        )
    return jax.tree.map(lambda g: g / weights, total), jax.tree.map(to_numpy, out)


def to_numpy(a):
    return a if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else np.asarray(a)


def relative_error(reference, got):
    """Return ||got - reference|| / ||reference||, by numpy."""
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))  # noqa: E731
    return norm(jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), reference, got)) / norm(
        jax.device_get(reference)
    )


def part(batch, start, end):
    return jax.tree.map(lambda a: np.asarray(a)[start:end], batch)


@functools.cache
def compiled_full(loss_fn):
    return jax.jit(tbptt.full_bptt(loss_fn).estimate)


def full(loss_fn, params, carry, batch):
    return jax.tree.map(to_numpy, compiled_full(loss_fn)(params, carry, batch))


def one_sequence(cell, steps=7):
    loss_fn, params, carry, batch = problem(cell, "plain", steps=steps)
    carry, batch = jax.tree.map(np.asarray, (carry, batch))
    one = jax.tree.map(lambda a: a[0], carry), jax.tree.map(lambda a: a[:, 0], batch)
    return loss_fn, params, *one


@cells("lstm", of=("lstm", "gru", "min_gru", "stack"))
def test_rtrl_is_full_bptt_of_the_whole_stream_for_any_split_into_calls(cell):
    loss_fn, params, carry, batch = problem(cell)
    want = full(loss_fn, params, carry, batch)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(want.grads))
    estimator = tbptt.rtrl(loss_fn)
    for segment in (1, T) if cell == CELLS["lstm"] else (2,):
        grads, out = in_segments(estimator, params, carry, batch, segment)
        same(grads, want.grads)
        same(out.memory.carry, want.memory)
    if segment == T:
        same(out.loss, want.loss)


@exhaustive
@pytest.mark.parametrize("extra", ["plain", "mask"])
def test_sparse_rtrl_is_full_bptt_with_each_of_the_flags(extra):
    loss_fn, params, carry, batch = problem(CELLS["lstm"], extra)
    want = full(loss_fn, params, carry, batch)
    same(in_segments(tbptt.estimators.sparse_rtrl(loss_fn), params, carry, batch, 3)[0], want.grads)


@cells("elman", of=("elman", "gru", "stack"))
def test_sparse_rtrl_is_rtrl_and_so_is_snap_of_enough_steps(cell):
    loss_fn, params, carry, batch = problem(cell)
    want = full(loss_fn, params, carry, batch)
    for estimator in {
        CELLS["elman"]: [tbptt.snap(loss_fn, 20)],
        CELLS["gru"]: [tbptt.estimators.sparse_rtrl(loss_fn)],
        CELLS["stack"]: [tbptt.estimators.sparse_rtrl(loss_fn), tbptt.snap(loss_fn, 20)],
    }[cell]:
        grads, out = in_segments(estimator, params, carry, batch, 3)
        same(grads, want.grads)
        assert out.info.kept == 1


@cells("linear", of=("linear", "min_lstm"))
def test_snap_1_of_a_diagonal_cell_is_exact_with_one_number_per_parameter_and_row(cell):
    loss_fn, params, carry, batch = problem(cell)
    grads, out = in_segments(tbptt.snap(loss_fn, 1), params, carry, batch, 2)
    same(grads, full(loss_fn, params, carry, batch).grads)
    assert out.info.kept == 1
    (influence,) = out.memory.influences
    assert influence.size == 3 * raveled(params.cell)[0].size  # 3 batch rows


@exhaustive
def test_snap_1_of_a_dense_cell_is_biased_but_points_the_same_way():
    cell = tbptt.LSTM(D, 8)  # wide enough that what is dropped matters
    loss_fn, params, carry, batch = problem(cell, steps=12)
    params = jax.jit(functools.partial(jax.tree.map, lambda a: 2 * a))(
        params
    )  # gates far from 1/2 have a longer memory
    _, out = in_segments(tbptt.snap(loss_fn, 1), params, carry, batch, 12)
    error = jax.jit(compare_gradients)(full(loss_fn, params, carry, batch).grads, out.grads)
    assert 0.5 < error.cosine < 0.9999 and error.relative_error > 0.01
    assert out.info.kept < 0.3


# --- influence balancing (Tallec and Ollivier 2017)


def balancing_loss(params, carry, batch):
    def body(s, _):
        s = jnp.asarray(A) @ s + params["theta"] * jnp.asarray(SIGN)
        return s, 0.5 * (s[0] - 1) ** 2

    carry, losses = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(losses), carry


def balancing(steps):
    batch = tbptt.Batch(*(jnp.asarray(np.zeros((steps, 1))) for _ in range(2)))
    return {"theta": jnp.asarray(np.float64(0.5))}, jnp.asarray(np.ones(N)), batch


@pytest.mark.parametrize("name", ["rtrl", pytest.param("sparse_rtrl", marks=exhaustive)])
def test_influence_balancing_is_full_bptt(name):
    params, carry, batch = balancing(120)
    want = full(balancing_loss, params, carry, batch).grads
    assert abs(want["theta"]) > 1
    same(in_segments(ALL[name](balancing_loss), params, carry, batch, 30)[0], want)


def test_rtrl_converges_online_where_short_windows_diverge():
    params, carry, batch = balancing(30_000)
    estimator, optimizer = tbptt.rtrl(balancing_loss), optax.sgd(1e-4)
    init = functools.partial(tbptt.init_state, estimator, optimizer)
    state = jax.jit(init)(params, carry, batch)
    state, _ = tbptt.make_train_epoch(estimator, optimizer, 1)(state, batch)
    assert abs(float(state.params["theta"]) + 1 / 6) < 1e-4


# --- forward derivatives of one step


@cells("lstm", of=("lstm", "stack"))
def test_one_step_of_unroll_has_a_forward_derivative(cell):
    _, params, carry, batch = problem(cell)
    flags = {"resets": np.array([[True, False, True]]), "mask": np.array([[True, True, False]])}
    inputs = np.asarray(batch.inputs)[:1]
    flat, back = raveled((params.cell, carry))
    tangent = np.random.default_rng(0).normal(size=flat.shape)

    def run(unroll, flat):
        out = unroll(cell, *back(flat), inputs, **flags)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(out)])

    moved = jax.jit(
        lambda flat, tangent: jax.jvp(functools.partial(run, tbptt.unroll), (flat,), (tangent,))
    )
    plain = jax.jit(functools.partial(run, tbptt.plain_unroll))
    (value, moved), step = moved(flat, tangent), 1e-6 * tangent
    same(value, plain(flat))
    slope = (np.asarray(plain(flat + step)) - np.asarray(plain(flat - step))) / 2e-6
    np.testing.assert_allclose(moved, slope, rtol=1e-6, atol=1e-8)
