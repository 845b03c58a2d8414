"""Bias of an estimator against closed forms of a scalar recurrence, and variance by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import DiagonalLinear, Elman
from tbptt.diagnostics import compare_gradients, estimator_bias
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.losses.sequence import sequence_loss, squared_error
from tbptt.types import Batch, Estimator
from tbptt.windows import split
from tests.support.sequences import cell_params, sequence_params, zero_carry


def test_scalar_linear_recurrence_has_bias_one_minus_a_to_the_k():
    # h' = a h + w x, x = 1, loss h in the late steps: dh_t/dw = (1 - a^t) / (1 - a), and K steps of
    # back-propagation give (1 - a^K) / (1 - a).
    a, T, late, k = 0.9, 400, 100, 5
    cell = DiagonalLinear(1, 1)

    def loss_fn(w, carry, batch):
        params = jax.tree.map(jnp.asarray, cell_params(cell))._replace(a=jnp.array([a]), w_x=w)
        carry, ys = jax.lax.scan(lambda c, x: cell(params, c, x), carry, batch.inputs)
        return jnp.sum(ys[:, 0] * batch.weights), carry

    cell_params(cell)  # drawn outside of jit
    batch = Batch(np.ones((T, 1)), None, (np.arange(T) >= T - late).astype(float))
    cut, full = truncated_bptt(loss_fn, 1, k), full_bptt(loss_fn)
    run = jax.jit(
        lambda w, carry, batch: estimator_bias(cut, full, w, carry, batch, segment=T // 4)
    )
    found = jax.tree.map(np.asarray, run(np.ones((1, 1)), zero_carry(cell), batch))
    unbiased = 1 - found.bias.relative_error
    np.testing.assert_allclose(
        [found.grads[0, 0] / found.reference[0, 0], unbiased], 1 - a**k, rtol=1e-6
    )
    np.testing.assert_allclose(unbiased, 0.4095, atol=6e-5)
    assert found.bias.cosine == pytest.approx(1) and found.bias.sign_agreement == 1
    np.testing.assert_allclose(found.variance, 0, atol=1e-12)  # only one segment has weight


T, B, D, H, SEGMENT = 24, 2, 2, 3, 8
CELL, READOUT = Elman(D, H), nn.Dense(1, param_dtype=jnp.float64)
LOSS = sequence_loss(CELL, READOUT, squared_error)


CARRY = zero_carry(CELL, (B,))
XS = np.random.default_rng(0).normal(size=(T, B, D))
BATCH = Batch(
    XS, np.cumsum(XS[..., :1], axis=0) / 3, weights=np.random.default_rng(1).random((T, B))
)


@pytest.fixture
def setting():
    return sequence_params(CELL, READOUT), CARRY, BATCH


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_segments_variance_and_mean_equal_a_reference_loop(setting):
    params, carry, batch = setting
    estimator, full = truncated_bptt(LOSS, 4, 6), full_bptt(LOSS)

    @jax.jit
    def at_once(params, carry, batch):
        memory = estimator.init(params, carry, batch)
        whole = estimator.estimate(params, memory, batch).grads
        found = estimator_bias(estimator, full, params, carry, batch, segment=SEGMENT)
        return found, full.estimate(params, carry, batch).grads, whole, memory

    found, r, whole, memory = jax.tree.map(np.asarray, at_once(params, carry, batch))
    r, whole, gs, ws, estimate = flat(r), flat(whole), [], [], jax.jit(estimator.estimate)
    for window in split(batch, 8, 16):
        gradient = estimate(params, memory, window)
        memory = gradient.memory
        gs.append(flat(gradient.grads))
        ws.append(np.sum(window.weights))
    g = np.average(gs, axis=0, weights=ws)
    np.testing.assert_allclose(g, whole, rtol=1e-10)
    np.testing.assert_allclose(flat(found.grads), g, rtol=1e-10)
    np.testing.assert_allclose(flat(found.reference), r, rtol=1e-12)
    variance = np.average([np.sum((x - g) ** 2) for x in gs], weights=ws)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-10)
    assert found.variance > 1e-4
    for errors, vectors in ((found.bias, [g]), (found.segments, gs)):
        want = [
            (
                np.linalg.norm(v - r) / np.linalg.norm(r),
                v @ r / np.linalg.norm(v) / np.linalg.norm(r),
                np.mean(np.sign(v) == np.sign(r)),
            )
            for v in vectors
        ]
        np.testing.assert_allclose(
            np.transpose(jax.tree.map(np.atleast_1d, tuple(errors))), want, rtol=1e-10
        )
    assert found.bias.relative_error > 1e-2 and 0 < min(found.segments.sign_agreement) < 1


def test_a_noisy_estimator_draws_a_new_key_in_every_segment():
    inner = full_bptt(lambda w, carry, batch: (jnp.sum((batch.inputs @ w) ** 2), carry))

    def noisy(params, memory, batch, key=None):
        gradient = inner.estimate(params, memory, batch)
        sign = jax.random.rademacher(key, (), float)
        return gradient._replace(
            grads=jax.tree.map(lambda g: jnp.full_like(g, sign), gradient.grads)
        )

    run = jax.jit(
        lambda p, b, k: estimator_bias(
            Estimator(inner.init, noisy), inner, p, (), b, segment=1, key=k
        )
    )
    found = run(np.ones(D), Batch(XS, None), jax.random.key(2))
    mean = float(flat(found.grads)[0])
    assert abs(mean) < 1
    np.testing.assert_allclose(found.variance, D * (1 - mean**2), rtol=1e-10)


def test_one_step_one_unit_and_a_loss_that_ignores_the_carry():
    cell = Elman(1, 1)
    params, carry = cell_params(cell), zero_carry(cell)

    def ignores(params, carry, batch):
        return jnp.sum((batch.inputs @ params.w_x) ** 2), carry

    cut, full = truncated_bptt(ignores, 1, 1), full_bptt(ignores)
    run = jax.jit(lambda p, b: estimator_bias(cut, full, p, carry, b, segment=1))
    batch = Batch(np.ones((4, 1)), None, np.ones((4,)))
    found = run(params, batch)
    assert found.bias.relative_error < 1e-15 and found.variance < 1e-30
    assert found.bias.sign_agreement == 1
    np.testing.assert_allclose(found.bias.cosine, 1, rtol=1e-12)
    with pytest.raises(ValueError, match=r"multiple of segment; got T=4, segment=3"):
        estimator_bias(cut, full, params, carry, batch, segment=3)
    found = jax.tree.map(np.asarray, run(params, batch._replace(weights=np.zeros((4,)))))
    assert (
        found.bias[0] == 0
        and np.isnan(found.bias.cosine)
        and found.bias.sign_agreement == 1
        and found.variance == 0
    )
    found = run(jax.tree.map(lambda p: p * np.nan, params), batch)
    assert (
        np.isnan(found.bias.relative_error)
        and np.isnan(found.bias.cosine)
        and np.isnan(found.variance)
    )


compared = jax.jit(compare_gradients)


def test_compare_gradients_at_zero_and_at_the_limits_of_float32():
    zero, one = {"a": np.zeros(3)}, {"a": np.array([1.0, 0.0, -1.0])}
    assert compared(zero, one).relative_error == np.inf and compared(zero, zero).relative_error == 0
    assert compared(one, zero)[0] == 1 and np.isnan(compared(one, zero).cosine)
    np.testing.assert_allclose(compared(one, zero).sign_agreement, 1 / 3)
    np.testing.assert_allclose(compared(one, {"a": -one["a"]})[:2], (2, -1), rtol=1e-12)
    for size in (
        1e-37,
        1e-30,
        1e30,
        8.4e37,
        4e37,
    ):  # the differences, quotients and norms of these leave float32
        r, g = (np.float32(size) * np.array(v, np.float32) for v in ([3.0, 4.0], [4.0, 3.0]))
        np.testing.assert_allclose(compared(r, g), (np.sqrt(2) / 5, 24 / 25, 1), rtol=1e-6)
    for size in (1e38, 3e38):
        r = np.array([size, 0], np.float32)
        assert compared(r, r) == (0, 1, 1)
        np.testing.assert_allclose(compared(r, -r), (2, -1, 0.5), rtol=1e-6)
        small = np.float32(1e-30) * r
        np.testing.assert_allclose(compared(r, small), (1, 1, 1), rtol=1e-6)
        np.testing.assert_allclose(compared(small, r), (1e30, 1, 1), rtol=1e-6)
        assert compared(np.array([1e-38, 0], np.float32), r).relative_error == np.inf  # 1e76
    two = np.full(100, 3e38, np.float32)  # whose norm is beyond the range
    np.testing.assert_allclose(compared(two, -two), (2, -1, 0), rtol=1e-6)
    bad = two.copy()
    bad[0] = np.nan
    assert np.isnan(compared(two, bad)[:2]).all() and np.isnan(compared(bad, bad)[:2]).all()
    half = np.full((100,), 300, np.float16)
    np.testing.assert_allclose(compared(half, half * np.float16(2)), (1, 1, 1), rtol=1e-6)


def test_compare_gradients_errors():
    with pytest.raises(
        ValueError, match=r"have one structure; reference is PyTreeDef\(\{'a': \*\}\)"
    ):
        compared({"a": np.zeros(2)}, {"b": np.zeros(2)})
    with pytest.raises(
        ValueError, match=r"reference\['a'\] has shape \(2,\), but other\['a'\] has \(3,\)"
    ):
        compared({"a": np.zeros(2)}, {"a": np.zeros(3)})
    with pytest.raises(ValueError, match="at least one leaf"):
        compared({}, {})
