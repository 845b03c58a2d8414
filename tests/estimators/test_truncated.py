"""Full and truncated BPTT equal their definitions, in float64, with gradients far from 0."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tests.support import oracle
from tests.support.estimating import CELLS, B, D, T, make, own_problem, run

exhaustive = pytest.mark.exhaustive
# k2 below, at, above k1, not a multiple of it, at and beyond T
PAIRS = [(1, 5), (3, 3), (3, 2), (3, 7), (4, 6), (4, 8), (12, 12), (2, 12), (4, 40), (12, 5)]
# Groups of 1; of 3, with a remainder; of all windows.
GROUPED = [(*pair, 1) for pair in PAIRS]
GROUPED += [(*pair, 3) for pair in ((1, 5), (3, 3), (3, 2), (3, 7), (2, 12))]
GROUPED += [(*pair, 100) for pair in ((1, 5), (3, 3), (3, 2), (4, 6))]
FEW = {(3, 7, 3), (3, 2, 3), (3, 3, 3), (12, 5, 1)}


def sets(every, few):
    """All sets of parameters; those not among the few are exhaustive tests."""
    assert set(few) <= set(every)
    return [pytest.param(*one, marks=[] if one in few else exhaustive) for one in every]


def cells(*few):
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in few else exhaustive) for name in CELLS]
    )


same = functools.partial(chex.assert_trees_all_close, rtol=1e-10, atol=1e-14)


def problem(name, extra):
    return own_problem(extra) if name == "own" else make(CELLS[name], extra)


@functools.cache
def plain_loop(name, extra, k1, k2):
    """Return (loss, gradient) of the plain loop."""
    return oracle.truncated(*problem(name, extra), k1, k2)


@pytest.mark.parametrize(
    "name, extra, k1, k2",
    sets(
        [
            ("own", "weights resets", 3, 12),
            ("elman", "plain", 4, 17),
        ],
        [("own", "weights resets", 3, 12)],
    ),
)
def test_k2_of_at_least_T_is_full_bptt(name, extra, k1, k2):
    loss_fn, params, carry, batch = problem(name, extra)
    full = run(tbptt.full_bptt(loss_fn), params, carry, batch)
    got = run(tbptt.truncated_bptt(loss_fn, k1, k2), params, carry, batch)
    same((got.loss, got.grads), (full.loss, full.grads))


@pytest.mark.parametrize("k1, k2, group", sets(GROUPED, FEW))
def test_every_window_equals_the_plain_loop(k1, k2, group):
    """Use a loss function of the user, without mask: a mask would hide zeros of invalid steps."""
    loss_fn, params, carry, batch = own_problem("weights resets")
    got = run(tbptt.truncated_bptt(loss_fn, k1, k2, group=group), params, carry, batch)
    same((got.loss, got.grads), plain_loop("own", "weights resets", k1, k2))
    np.testing.assert_allclose(
        got.info.weights, np.sum(np.asarray(batch.weights).reshape(-1, k1 * B), axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(
        np.sum(got.info.losses * got.info.weights) / np.sum(got.info.weights), got.loss, rtol=1e-12
    )


@pytest.mark.parametrize(
    "extra, k1, k2",
    sets(
        [("plain", 4, 4), ("plain", 4, 6), ("weights", 4, 2), ("resets", 4, 6), ("mask", 4, 4)],
        [("plain", 4, 4)],  # with weights, resets and a mask: the tests before and after this one
    ),
)
def test_weights_resets_and_mask_each_equal_the_plain_loop(extra, k1, k2):
    loss_fn, params, carry, batch = make(CELLS["elman"], extra)
    got = run(tbptt.truncated_bptt(loss_fn, k1, k2), params, carry, batch)
    same((got.loss, got.grads), plain_loop("elman", extra, k1, k2))


@pytest.mark.parametrize(
    "name, k1, k2, group",
    sets(
        [
            ("elman", 3, 7, 3),
            ("gru", 3, 7, 3),
            ("linear", 3, 2, 1),
            ("stack", 3, 3, 3),
            ("lstm", 3, 2, 3),
            ("lstm", 3, 7, 1),
        ],
        [("elman", 3, 7, 3)],
    ),
)
def test_every_cell_equals_the_plain_loop(name, k1, k2, group):
    """With weights, resets and a mask."""
    loss_fn, params, carry, batch = make(CELLS[name], "all")
    got = run(tbptt.truncated_bptt(loss_fn, k1, k2, group=group), params, carry, batch)
    same((got.loss, got.grads), plain_loop(name, "all", k1, k2))
    np.testing.assert_allclose(
        np.sum(got.info.losses * got.info.weights) / np.sum(got.info.weights), got.loss, rtol=1e-12
    )
    assert got.info.losses.shape == (4,) and len(set(got.info.weights)) > 1


@cells("lstm")
def test_full_equals_central_finite_differences(name):
    loss_fn, params, carry, batch = make(CELLS[name], "all")
    flat, unravel = jax.flatten_util.ravel_pytree(jax.device_get(params))

    @jax.jit
    def compared(points):
        grads = tbptt.full_bptt(loss_fn).estimate(params, carry, batch).grads
        return jax.flatten_util.ravel_pytree(grads)[0], jax.vmap(
            lambda p: loss_fn(unravel(p), carry, batch)[0]
        )(points)

    step = 1e-5 * np.eye(flat.size)
    got, losses = jax.device_get(
        compared(np.concatenate([np.asarray(flat) + step, np.asarray(flat) - step]))
    )
    want = (losses[: flat.size] - losses[flat.size :]) / (2e-5 * oracle.weight_of(batch))
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-10)


@functools.cache
def compiled(loss_fn, k1, k2, group=1):
    estimator = tbptt.truncated_bptt(loss_fn, k1, k2, group=group)
    return jax.jit(estimator.init), jax.jit(estimator.estimate)


@pytest.mark.parametrize(
    "k1, k2, segment, group",
    sets(
        [
            *((2, k2, segment, group) for k2 in (3, 5) for segment, group in ((2, 1), (6, 2))),
            *((2, k2, 6, 2) for k2 in (1, 2, 8)),
            (3, 4, 3, 1),
            (1, 4, 6, 2),
        ],
        [(2, 3, 6, 2), (2, 5, 2, 1)],
    ),
)
def test_a_stream_in_segments_equals_one_long_chunk(k1, k2, segment, group):
    assert_segments_equal_the_plain_loop("own", "weights resets", k1, k2, segment, group)


@exhaustive
@pytest.mark.parametrize("k1, k2, segment, group", [(2, 3, 6, 2), (3, 4, 6, 1)])
def test_a_masked_stream_of_an_lstm_in_segments_equals_one_long_chunk(k1, k2, segment, group):
    assert_segments_equal_the_plain_loop("lstm", "all", k1, k2, segment, group)


def assert_segments_equal_the_plain_loop(name, extra, k1, k2, segment, group):
    """Sums over segments at fixed parameters; the first segments have shorter windows."""
    loss_fn, params, carry, batch = (
        own_problem(extra) if name == "own" else make(CELLS[name], extra)
    )
    init, estimate = compiled(loss_fn, k1, k2, group)
    memory, numpy_batch = init(params, carry, batch), jax.tree.map(np.asarray, batch)
    loss_sum, total, grads_sum = 0.0, 0.0, jax.tree.map(lambda a: np.zeros(a.shape), params)
    for start in range(0, T, segment):
        chunk = oracle.part(numpy_batch, start, start + segment)
        out = estimate(params, memory, chunk)
        memory, (loss, grads), weight = out.memory, jax.device_get(out[:2]), oracle.weight_of(chunk)
        grads_sum = jax.tree.map(lambda a, b, w=weight: a + w * b, grads_sum, grads)
        loss_sum, total = loss_sum + weight * loss, total + weight
    grads = jax.tree.map(lambda g: g / total, grads_sum)
    same((loss_sum / total, grads), plain_loop(name, extra, k1, k2))


def test_replay_uses_the_current_parameters():
    """With updates: the stored carry is old, the replayed steps use the current parameters."""
    k1, k2, lr = 2, 5, 0.5
    loss_fn, params, start_carry, batch = own_problem("weights resets")
    init, estimate = compiled(loss_fn, k1, k2)
    memory = init(params, start_carry, batch)
    step, _ = oracle.compiled(loss_fn)
    batch = jax.tree.map(np.asarray, batch)
    p, carries = params, {0: start_carry}  # carries[t]: the stored carry that enters step t
    for j in range(T // k1):
        end = (j + 1) * k1
        start, after = max(0, end - k2), max(0, end + k1 - k2)
        out = estimate(p, memory, oracle.part(batch, j * k1, end))
        want = oracle.window_gradient(
            loss_fn, p, carries[start], oracle.part(batch, start, end), j * k1 - start
        )
        weight = np.sum(batch.weights[j * k1 : end])
        same(out.grads, jax.tree.map(lambda g, w=weight: g / w, want))
        carries[after] = carries[start]
        for t in range(start, after):
            carries[after] = step(p, carries[after], oracle.part(batch, t, t + 1))[1]
        memory, p = (
            out.memory,
            jax.tree.map(lambda a, g: np.asarray(a) - lr * np.asarray(g), p, out.grads),
        )


@pytest.mark.parametrize("k1, k2", sets([(3, 3), (3, 7)], [(3, 3)]))
def test_batched_equals_the_mean_of_unbatched(k1, k2):
    loss_fn, params, carry, batch = make(CELLS["elman"], "resets")
    estimator = tbptt.truncated_bptt(loss_fn, k1, k2)
    whole = run(estimator, params, carry, batch)
    each = jax.jit(jax.vmap(
        lambda c, b: estimator.estimate(params, estimator.init(params, c, b), b)[:2], in_axes=(0, 1)
    ))(carry, batch)  # fmt: skip
    mean = jax.tree.map(lambda leaf: np.asarray(leaf).mean(0), each)
    same((whole.loss, whole.grads), mean)


@pytest.mark.parametrize("k1, k2", sets([(4, 4), (4, 6)], [(4, 4)]))
def test_padding_changes_nothing(k1, k2):
    loss_fn, params, carry, batch = make(CELLS["elman"], "weights")
    padded = jax.tree.map(lambda a: np.concatenate([a, np.full((4, *a.shape[1:]), np.nan)]), batch)
    exists = np.arange(T + 4)[:, None] < np.full(B, T)
    padded = padded._replace(mask=exists, weights=np.nan_to_num(padded.weights, nan=1.0))
    estimator = tbptt.truncated_bptt(loss_fn, k1, k2)
    got, want = run(estimator, params, carry, padded), run(estimator, params, carry, batch)
    chex.assert_trees_all_close(
        (got.loss, got.grads), (want.loss, want.grads), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(
    "make_estimator", [tbptt.full_bptt, lambda f: tbptt.truncated_bptt(f, 4, 4)]
)
def test_no_weight_at_all_gives_zero_not_nan(make_estimator):
    loss_fn, params, carry, batch = make(CELLS["elman"])
    out = run(make_estimator(loss_fn), params, carry, batch._replace(weights=np.zeros((T, B))))
    assert out.loss == 0 and all(np.all(g == 0) for g in jax.tree.leaves(out.grads))


@functools.cache
def temporary_bytes(k1, k2, group, length):
    """k1 = 0: full BPTT."""
    loss_fn, params, carry, batch = make(CELLS["elman"])
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((length, *a.shape[1:]), a.dtype), batch)
    estimator = (
        tbptt.truncated_bptt(loss_fn, k1, k2, group=group) if k1 else tbptt.full_bptt(loss_fn)
    )
    memory = jax.eval_shape(estimator.init, params, carry, batch)
    return (
        jax.jit(estimator.estimate)
        .lower(params, memory, batch)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


DATA = 8 * B * (D + 2)  # bytes of one step's inputs and targets, which XLA may copy


@pytest.mark.exhaustive
@pytest.mark.parametrize("k1, k2, group", [(16, 32, 1), (16, 32, 8), (16, 16, 8)])
def test_temporary_bytes_do_not_depend_on_T(k1, k2, group):
    growth = temporary_bytes(k1, k2, group, 4096) - temporary_bytes(k1, k2, group, 512)
    assert growth <= 2 * DATA * (4096 - 512)


def test_temporary_bytes_of_full_bptt_grow_with_T():
    growth = (temporary_bytes(0, 0, 1, 4096) - temporary_bytes(0, 0, 1, 2048)) / (
        temporary_bytes(0, 0, 1, 2048) - temporary_bytes(0, 0, 1, 1024)
    )
    assert 1.9 < growth < 2.1 and temporary_bytes(0, 0, 1, 4096) > 5 * temporary_bytes(
        16, 32, 1, 4096
    )


@exhaustive
def test_temporary_bytes_of_a_large_group_do_not_depend_on_T():
    assert temporary_bytes(16, 16, 85, 16384) - temporary_bytes(16, 16, 85, 8192) <= 2 * DATA * 8192


def test_a_group_keeps_the_dtype_of_the_loss():
    loss_fn, *point = own_problem()
    narrow = lambda a: jnp.float32 if a.dtype == jnp.float64 else a.dtype  # noqa: E731
    params, carry, batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, narrow(a)), tuple(point)
    )
    for k2, group in ((2, 1), (4, 3), (6, 3)):
        estimator = tbptt.truncated_bptt(loss_fn, 4, k2, group=group)
        memory = jax.eval_shape(estimator.init, params, carry, batch)
        out = jax.eval_shape(estimator.estimate, params, memory, batch)
        assert out.loss.dtype == out.info.losses.dtype == jnp.float32


def test_all_pairs_are_tested_on_both_sides():
    for pairs, least in ((PAIRS, 10), ([pair[:2] for pair in FEW], 4)):
        assert all(T % k1 == 0 for k1, _ in pairs)
        assert {np.sign(k2 - k1) for k1, k2 in pairs} == {-1, 0, 1} and any(
            k2 % k1 for k1, k2 in pairs if k2 > k1
        )
        assert len(set(pairs)) == len(pairs) >= least
