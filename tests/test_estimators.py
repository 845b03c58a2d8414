"""Full and truncated BPTT against their definitions, in float64, on dynamics whose gradients are alive."""

import functools
import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.estimators import side_by_side
from tests import oracle

T, B, D = 12, 3, 2
CELLS = {
    "elman": tbptt.Elman(D, 4, gain=1.2),
    "gru": tbptt.GRU(D, 4),
    "lstm": tbptt.LSTM(D, 4),
    "linear": tbptt.DiagonalLinear(D, 4),
    "stack": tbptt.Stack((tbptt.LSTM(D, 3), tbptt.GRUResetBefore(3, 4))),
}
READOUT = nn.Dense(2, param_dtype=jnp.float64)
EXTRAS = ("plain", "weights", "resets", "mask", "all")
# every k1 that divides T; k2 below, at, above, not a multiple, beyond T
PAIRS = [
    (1, 1),
    (1, 5),
    (2, 1),
    (3, 3),
    (3, 2),
    (3, 7),
    (4, 6),
    (4, 8),
    (6, 7),
    (6, 9),
    (12, 12),
    (2, 12),
    (4, 40),
    (12, 5),
]


@functools.cache  # arrays cannot be changed; and a loss function that is the same one is traced once
def make(cell, extra="plain", seed=0, T=T):
    keys = jax.random.split(jax.random.key(seed), 8)
    has = lambda name: extra in (name, "all")  # noqa: E731
    batch = tbptt.Batch(
        inputs=jax.random.normal(keys[0], (T, B, D)),
        targets=jax.random.normal(keys[1], (T, B, 2)),
        weights=jax.random.uniform(keys[2], (T, B)) if has("weights") else None,
        resets=jax.random.bernoulli(keys[3], 0.2, (T, B)) if has("resets") else None,
        mask=jax.random.bernoulli(keys[4], 0.7, (T, B)) if has("mask") else None,
    )
    loss_fn = tbptt.sequence_loss(cell, READOUT, tbptt.squared_error)
    params = tbptt.init_params(keys[5], cell, READOUT)
    carry = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(keys[6], leaf.shape), cell.initial_carry((B,)))
    return loss_fn, params, carry, batch


@functools.cache
def plain_loop(cell, extra, k1, k2):
    """(loss, gradient) of the written-out loop on `make(cell, extra)`."""
    return oracle.truncated(*make(cell, extra), k1, k2)


def run(estimator, params, carry, batch):
    return jax.jit(estimator.estimate)(params, estimator.init(params, carry, batch), batch)


@functools.cache
def lstm_windows(k1, k2, group):
    loss_fn, *problem = make(CELLS["lstm"], "all")
    return run(tbptt.truncated_bptt(loss_fn, k1, k2, group=group), *problem)


@pytest.mark.parametrize("extra, k1, k2", [("plain", 4, 17), ("all", 3, 12)])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_k2_of_at_least_T_is_full_bptt(cell, extra, k1, k2):
    loss_fn, params, carry, batch = make(cell, extra)
    full = run(tbptt.full_bptt(loss_fn), params, carry, batch)
    got = run(tbptt.truncated_bptt(loss_fn, k1, k2), params, carry, batch)
    chex.assert_trees_all_close((got.loss, got.grads), (full.loss, full.grads), rtol=1e-10, atol=1e-14)


# One after another; 3 at once, where there are more, with a rest or without; all at once.
@pytest.mark.parametrize("k1, k2, group", [(*pair, g) for pair in PAIRS for g in (1, 3, 100) if g != 3 or T // pair[0] > 3])
def test_every_window_equals_the_plain_loop(k1, k2, group):
    got = lstm_windows(k1, k2, group)
    want = plain_loop(CELLS["lstm"], "all", k1, k2)
    chex.assert_trees_all_close((got.loss, got.grads), want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("extra", EXTRAS[:-1])
def test_weights_resets_and_mask_each_equal_the_plain_loop(extra):
    for k1, k2 in [(4, 4), (4, 6), (4, 2)]:
        loss_fn, params, carry, batch = make(CELLS["elman"], extra)
        got = run(tbptt.truncated_bptt(loss_fn, k1, k2), params, carry, batch)
        want = plain_loop(CELLS["elman"], extra, k1, k2)
        chex.assert_trees_all_close((got.loss, got.grads), want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_every_cell_equals_the_plain_loop(cell):
    loss_fn, params, carry, batch = make(cell, "all")
    got = run(tbptt.truncated_bptt(loss_fn, 3, 7), params, carry, batch)
    want = plain_loop(cell, "all", 3, 7)
    chex.assert_trees_all_close((got.loss, got.grads), want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_full_equals_central_finite_differences(cell):
    loss_fn, params, carry, batch = make(cell, "all")
    grads = run(tbptt.full_bptt(loss_fn), params, carry, batch).grads
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    loss = jax.jit(lambda p: loss_fn(unravel(p), carry, batch)[0] / oracle.weight_of(batch))
    step = 1e-5
    want = np.array([(loss(flat + step * e) - loss(flat - step * e)) / (2 * step) for e in np.eye(flat.size)])
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(grads)[0], want, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("k1, k2", [(2, 1), (2, 2), (2, 3), (2, 5), (2, 8), (3, 4), (1, 4)])
def test_a_stream_in_pieces_equals_one_long_chunk(k1, k2, group):
    """Sums over pieces at fixed parameters; the first pieces are younger than the window."""
    loss_fn, params, carry, batch = make(CELLS["lstm"], "all")
    estimator = tbptt.truncated_bptt(loss_fn, k1, k2, group=group)
    whole = lstm_windows(k1, k2, 1)
    estimate = jax.jit(estimator.estimate)
    for piece in (k1, 6) if group == 1 else (6,):
        memory, loss_sum, total = estimator.init(params, carry, jax.eval_shape(lambda: batch)), 0.0, 0.0
        grads_sum = jax.tree.map(jnp.zeros_like, params)
        for start in range(0, T, piece):
            chunk = oracle.part(batch, start, start + piece)
            out = estimate(params, memory, chunk)
            weight = oracle.weight_of(chunk)
            grads_sum = jax.tree.map(lambda a, b, w=weight: a + w * b, grads_sum, out.grads)
            memory, loss_sum, total = out.memory, loss_sum + weight * out.loss, total + weight
        grads = jax.tree.map(lambda g, w=total: g / w, grads_sum)
        chex.assert_trees_all_close((loss_sum / total, grads), (whole.loss, whole.grads), rtol=1e-10, atol=1e-14)


def test_replay_uses_the_current_parameters():
    """Online with updates: the remembered carry is old, the k2 - k1 replayed steps are run under today's parameters."""
    k1, k2, lr = 2, 5, 0.5
    loss_fn, params, start_carry, batch = make(CELLS["lstm"])
    estimator = tbptt.truncated_bptt(loss_fn, k1, k2)
    memory, estimate = estimator.init(params, start_carry, batch), jax.jit(estimator.estimate)
    step, window_grad = oracle.compiled(loss_fn)
    p, carries = params, {0: start_carry}  # carries[t]: the remembered carry that enters step t
    for j in range(T // k1):
        end = (j + 1) * k1
        start, after = max(0, end - k2), max(0, end + k1 - k2)
        out = estimate(p, memory, oracle.part(batch, j * k1, end))
        pieces = oracle.part(batch, start, j * k1), oracle.part(batch, j * k1, end)
        want = jax.tree.map(lambda g: g / (k1 * B), window_grad(p, carries[start], *pieces))
        chex.assert_trees_all_close(out.grads, want, rtol=1e-10, atol=1e-14)
        carries[after] = step(p, carries[start], oracle.part(batch, start, after))[1] if after > start else carries[start]
        memory, p = out.memory, jax.tree.map(lambda a, g: a - lr * g, p, out.grads)


def own_loss(params, carry, batch):
    """A user's own LossFn: her own scan, no mask, resets or weights, a dict for a carry, log so that zeros hurt."""

    def body(state, xy):
        x, y = xy
        s = jnp.tanh(params["w"] * state["s"] + jnp.log(jnp.abs(x)))
        return {"s": s, "n": state["n"] + 1}, jnp.sum((s - y) ** 2)

    carry, losses = jax.lax.scan(body, carry, (batch.inputs[..., 0], batch.targets[..., 0]))
    return jnp.sum(losses), carry


@pytest.mark.parametrize("k1, k2", PAIRS)
def test_exact_with_a_users_own_loss_function(k1, k2):
    _, _, _, batch = make(CELLS["elman"])
    params, carry = {"w": jnp.array(0.9)}, {"s": jnp.full((B,), 0.2), "n": jnp.zeros((), jnp.int32)}
    got = run(tbptt.truncated_bptt(own_loss, k1, k2), params, carry, batch)
    want = oracle.truncated(own_loss, params, carry, batch, k1, k2)
    chex.assert_trees_all_close((got.loss, got.grads), want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("k1, k2", [(3, 3), (3, 7), (3, 2)])
def test_batched_equals_the_mean_of_unbatched(k1, k2):
    loss_fn, params, carry, batch = make(CELLS["lstm"], "resets")
    estimator = tbptt.truncated_bptt(loss_fn, k1, k2)
    whole = run(estimator, params, carry, batch)
    each = jax.vmap(
        lambda c, b: estimator.estimate(params, estimator.init(params, c, b), b), in_axes=(0, 1)
    )(carry, batch)  # fmt: skip
    mean = jax.tree.map(lambda leaf: leaf.mean(0), (each.loss, each.grads))
    chex.assert_trees_all_close((whole.loss, whole.grads), mean, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("k1, k2", [(4, 4), (4, 6), (4, 3)])
def test_padding_changes_nothing(k1, k2):
    loss_fn, params, carry, batch = make(CELLS["lstm"], "weights")
    ones = jnp.ones((T, B), bool)
    pad = jax.tree.map(lambda leaf: jnp.full((4, *leaf.shape[1:]), jnp.nan), batch)
    padded = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, pad)
    padded = padded._replace(mask=jnp.concatenate([ones, ~ones[:4]]), weights=jnp.nan_to_num(padded.weights, nan=1.0))
    estimator = tbptt.truncated_bptt(loss_fn, k1, k2)
    got, want = run(estimator, params, carry, padded), run(estimator, params, carry, batch)
    chex.assert_trees_all_close((got.loss, got.grads), (want.loss, want.grads), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("make_estimator", [tbptt.full_bptt, lambda f: tbptt.truncated_bptt(f, 4, 4)])
def test_no_weight_at_all_gives_zero_not_nan(make_estimator):
    loss_fn, params, carry, batch = make(CELLS["lstm"])
    out = run(make_estimator(loss_fn), params, carry, batch._replace(weights=jnp.zeros((T, B))))
    assert out.loss == 0 and all(jnp.all(g == 0) for g in jax.tree.leaves(out.grads))


def test_window_info_combines_to_the_mean():
    loss_fn, params, carry, batch = make(CELLS["lstm"], "all")
    out = run(tbptt.truncated_bptt(loss_fn, 3, 5), params, carry, batch)
    np.testing.assert_allclose(np.sum(out.info.losses * out.info.weights) / np.sum(out.info.weights), out.loss, rtol=1e-12)
    assert out.info.losses.shape == (4,) and len(set(np.asarray(out.info.weights))) > 1


def test_temporary_bytes_depend_on_k2_and_not_on_T():
    @functools.cache
    def temp(estimator, length):
        loss_fn, params, carry, batch = make(CELLS["lstm"], T=length)
        memory = estimator.init(params, carry, batch)
        return jax.jit(estimator.estimate).lower(params, memory, batch).compile().memory_analysis().temp_size_in_bytes

    loss_fn = make(CELLS["lstm"])[0]
    for k1, k2 in [(16, 16), (16, 32)]:
        for group in (1, 8):
            estimator = tbptt.truncated_bptt(loss_fn, k1, k2, group=group)
            data = 8 * B * (D + 2)  # bytes of one step's inputs and targets, which XLA may copy
            assert temp(estimator, 4096) - temp(estimator, 512) <= 2 * data * (4096 - 512)
    full, by_rule = tbptt.full_bptt(loss_fn), tbptt.truncated_bptt(loss_fn, 16, 16)
    growth = (temp(full, 4096) - temp(full, 2048)) / (temp(full, 2048) - temp(full, 1024))
    assert 1.9 < growth < 2.1 and temp(full, 4096) > 5 * temp(tbptt.truncated_bptt(loss_fn, 16, 32, group=1), 4096)
    assert temp(by_rule, 16384) - temp(by_rule, 8192) <= 2 * data * 8192


def test_windows_go_side_by_side_on_an_accelerator_only(monkeypatch):
    batch = make(CELLS["lstm"])[-1]  # 3 lanes
    assert side_by_side.at_once(batch, 200) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert side_by_side.at_once(batch, 200) == 67  # 200 in 3 even shares: at most 256 // 3 = 85 at once
    assert side_by_side.at_once(batch, 1) == 1 and side_by_side.at_once(batch, 85) == 85


def test_side_by_side_keeps_the_dtype_of_the_loss():
    loss_fn, params, carry, batch = jax.tree.map(
        lambda a: a if callable(a) else a.astype(jnp.float32), make(tbptt.Elman(D, 4, dtype=jnp.float32))
    )
    for k2 in (2, 4, 6):
        one, many = (run(tbptt.truncated_bptt(loss_fn, 4, k2, group=g), params, carry, batch) for g in (1, 3))
        assert one.loss.dtype == many.loss.dtype and one.info.losses.dtype == many.info.losses.dtype == jnp.float32


def test_all_pairs_are_tested_on_both_sides():
    assert all(T % k1 == 0 for k1, _ in PAIRS)
    assert {np.sign(k2 - k1) for k1, k2 in PAIRS} == {-1, 0, 1} and any(k2 % k1 for k1, k2 in PAIRS if k2 > k1)
    assert len(set(itertools.chain(PAIRS))) == len(PAIRS)
