"""Bias of one estimator against another: the closed form of a scalar recurrence, and scatter counted by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, DiagonalLinear
from tbptt.diagnostics import compare_gradients, estimator_bias
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.objectives import init_params, sequence_loss, squared_error
from tbptt.types import Batch, Estimator
from tbptt.windows import split, total_weight


def test_scalar_linear_recurrence_has_bias_one_minus_a_to_the_k():
    # h' = a h + w x, x = 1, loss h in the late steps: dh_t/dw = (1 - a^t) / (1 - a), K steps see (1 - a^K) / (1 - a).
    a, T, late = 0.9, 400, 100
    cell = DiagonalLinear(1, 1)

    def loss_fn(w, carry, batch):
        params = cell.init(jax.random.key(0))._replace(a=jnp.array([a]), w_x=w)
        carry, ys = jax.lax.scan(lambda c, x: cell(params, c, x), carry, batch.inputs)
        return jnp.sum(ys[:, 0] * batch.weights), carry

    weights = (jnp.arange(T) >= T - late).astype(float)
    batch = Batch(jnp.ones((T, 1)), None, weights)
    shares = {}
    for k in (5, 10, 20, 50):
        run = lambda w, k=k: estimator_bias(  # noqa: E731
            truncated_bptt(loss_fn, 1, k), full_bptt(loss_fn), w, cell.initial_carry(), batch, piece=T // 4
        )
        found = jax.jit(run)(jnp.ones((1, 1)))
        ratio = float(found.grads[0, 0] / found.reference[0, 0])
        shares[k] = 1 - float(found.bias.relative_error)
        np.testing.assert_allclose([ratio, shares[k]], 1 - a**k, rtol=1e-6)
        assert found.bias.cosine == pytest.approx(1) and found.bias.sign_agreement == 1
        np.testing.assert_allclose(found.variance, 0, atol=1e-12)  # only one piece has weight
    np.testing.assert_allclose(list(shares.values()), [0.4095, 0.6513, 0.8784, 0.9948], atol=6e-5)


T, B, D, H, PIECE = 24, 2, 2, 3, 8
CELL, READOUT = GRU(D, H), nn.Dense(1, param_dtype=jnp.float64)
LOSS = sequence_loss(CELL, READOUT, squared_error)


@pytest.fixture
def setting(key):
    k_x, k_w, k_p = jax.random.split(key, 3)
    xs = jax.random.normal(k_x, (T, B, D))
    batch = Batch(xs, jnp.cumsum(xs[..., :1], axis=0) / 3, weights=jax.random.uniform(k_w, (T, B)))
    return init_params(k_p, CELL, READOUT), CELL.initial_carry((B,)), batch


def bias_of(estimator, params, carry, batch, piece):
    return jax.jit(lambda p, c, b: estimator_bias(estimator, full_bptt(LOSS), p, c, b, piece=piece))(params, carry, batch)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_pieces_variance_and_mean_by_hand(setting):
    params, carry, batch = setting
    estimator = truncated_bptt(LOSS, 4, 6)
    found = bias_of(estimator, params, carry, batch, piece=PIECE)
    r = flat(jax.jit(full_bptt(LOSS).estimate)(params, carry, batch).grads)
    estimator = estimator._replace(estimate=jax.jit(estimator.estimate))
    memory, gs, ws = estimator.init(params, carry, batch), [], []
    for window in split(batch, 8, 16):
        gradient = estimator.estimate(params, memory, window)
        memory = gradient.memory
        gs.append(flat(gradient.grads))
        ws.append(float(total_weight(window)))
    g = np.average(gs, axis=0, weights=ws)
    whole = flat(estimator.estimate(params, estimator.init(params, carry, batch), batch).grads)
    np.testing.assert_allclose(g, whole, rtol=1e-10)
    np.testing.assert_allclose(flat(found.grads), g, rtol=1e-10)
    np.testing.assert_allclose(flat(found.reference), r, rtol=1e-12)
    variance = np.average([np.sum((x - g) ** 2) for x in gs], weights=ws)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-10)
    assert found.variance > 1e-4
    for seen, vectors in ((found.bias, [g]), (found.pieces, gs)):
        want = [
            (
                np.linalg.norm(v - r) / np.linalg.norm(r),
                v @ r / np.linalg.norm(v) / np.linalg.norm(r),
                np.mean(np.sign(v) == np.sign(r)),
            )
            for v in vectors
        ]
        np.testing.assert_allclose(np.transpose(jax.tree.map(np.atleast_1d, tuple(seen))), want, rtol=1e-10)
    assert found.bias.relative_error > 1e-2 and 0 < min(found.pieces.sign_agreement) < 1


def test_an_estimator_against_itself(setting):
    params, carry, batch = setting
    found = bias_of(full_bptt(LOSS), params, carry, batch, piece=T)
    assert found.bias.relative_error == 0 and found.bias.sign_agreement == 1 and found.variance == 0
    np.testing.assert_allclose(found.bias.cosine, 1, rtol=1e-12)
    long = bias_of(truncated_bptt(LOSS, 4, T), params, carry, batch, piece=PIECE)
    assert long.bias.relative_error < 1e-12  # k2 >= T is full BPTT, fed in pieces too
    with pytest.raises(ValueError, match=r"multiple of piece; got T=24, piece=5"):
        estimator_bias(full_bptt(LOSS), full_bptt(LOSS), params, carry, batch, piece=5)


def test_a_noisy_estimator_draws_anew_in_every_piece(setting):
    params, carry, batch = setting
    batch = batch._replace(weights=None)
    inner = full_bptt(LOSS)

    def noisy(params, memory, batch, key=None):
        gradient = inner.estimate(params, memory, batch)
        sign = jax.random.rademacher(key, (), float)
        return gradient._replace(grads=jax.tree.map(lambda g: jnp.full_like(g, sign), gradient.grads))

    n = flat(params).size
    found = estimator_bias(Estimator(inner.init, noisy), inner, params, carry, batch, piece=1, key=jax.random.key(2))
    mean = float(flat(found.grads)[0])
    assert abs(mean) < 1
    np.testing.assert_allclose(found.variance, n * (1 - mean**2), rtol=1e-10)


def test_one_step_one_unit_and_a_loss_that_ignores_the_carry():
    cell = GRU(1, 1)
    params, carry = cell.init(jax.random.key(0)), cell.initial_carry()

    def ignores(params, carry, batch):
        return jnp.sum((batch.inputs @ params.w_x) ** 2), carry

    batch = Batch(jnp.ones((4, 1)), None)
    found = estimator_bias(truncated_bptt(ignores, 1, 1), full_bptt(ignores), params, carry, batch, piece=1)
    assert found.bias.relative_error < 1e-15 and found.variance < 1e-30
    nothing = batch._replace(weights=jnp.zeros((4,)))
    found = estimator_bias(truncated_bptt(ignores, 1, 1), full_bptt(ignores), params, carry, nothing, piece=2)
    assert found.bias[0] == 0 and np.isnan(found.bias.cosine) and found.bias.sign_agreement == 1 and found.variance == 0
    broken = jax.tree.map(lambda p: p * jnp.nan, params)
    found = estimator_bias(truncated_bptt(ignores, 1, 1), full_bptt(ignores), broken, carry, batch, piece=2)
    assert np.isnan(found.bias.relative_error) and np.isnan(found.bias.cosine) and np.isnan(found.variance)


def test_compare_gradients_at_zero_and_at_the_ends_of_float32():
    zero, one = {"a": jnp.zeros(3)}, {"a": jnp.array([1.0, 0.0, -1.0])}
    assert compare_gradients(zero, one).relative_error == jnp.inf
    assert compare_gradients(one, zero)[0] == 1 and np.isnan(compare_gradients(one, zero).cosine)
    np.testing.assert_allclose(compare_gradients(one, zero).sign_agreement, 1 / 3)
    np.testing.assert_allclose(compare_gradients(one, {"a": -one["a"]})[:2], (2, -1), rtol=1e-12)
    for size in (1e-37, 1e-30, 1e30, 8.4e37, 4e37):  # the differences, quotients and norms of these leave float32
        r, g = (size * jnp.array(v, jnp.float32) for v in ([3.0, 4.0], [4.0, 3.0]))
        np.testing.assert_allclose(compare_gradients(r, g), (np.sqrt(2) / 5, 24 / 25, 1), rtol=1e-6)
    for compare in (compare_gradients, jax.jit(compare_gradients)):
        for size in (1e38, 3e38):
            r = jnp.array([size, 0], jnp.float32)
            assert compare(r, r) == (0, 1, 1)
            np.testing.assert_allclose(compare(r, -r), (2, -1, 0.5), rtol=1e-6)
            np.testing.assert_allclose(compare(r, 1e-30 * r), (1, 1, 1), rtol=1e-6)
            np.testing.assert_allclose(compare(1e-30 * r, r), (1e30, 1, 1), rtol=1e-6)
            assert compare(1e-38 * (r / size), r).relative_error == jnp.inf  # 1e76
        two = jnp.full(100, 3e38, jnp.float32)  # whose norm is beyond the range
        np.testing.assert_allclose(compare(two, -two), (2, -1, 0), rtol=1e-6)
        bad = two.at[0].set(jnp.nan)
        assert np.isnan(compare(two, bad)[:2]).all() and np.isnan(compare(bad, bad)[:2]).all()
    half = jnp.full((100,), 300, jnp.float16)
    np.testing.assert_allclose(compare_gradients(half, half * 2), (1, 1, 1), rtol=1e-6)


def test_gradients_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"one structure; reference is PyTreeDef\(\{'a': \*\}\)"):
        compare_gradients({"a": jnp.zeros(2)}, {"b": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"reference\['a'\] has shape \(2,\), but other\['a'\] has \(3,\)"):
        compare_gradients({"a": jnp.zeros(2)}, {"a": jnp.zeros(3)})
    with pytest.raises(ValueError, match="at least one leaf"):
        compare_gradients({}, {})
    assert compare_gradients(jnp.zeros(1), jnp.zeros(1)).relative_error == 0
