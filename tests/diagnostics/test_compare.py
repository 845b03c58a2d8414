"""compare_estimators against closed forms of bias and variance, a random estimator, and costs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, DiagonalLinear
from tbptt.diagnostics import EstimatorRow, compare_estimators, estimator_bias, frontier
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.losses.sequence import sequence_loss, squared_error
from tbptt.types import Batch, Estimator
from tests.support.sequences import cell_params, sequence_params, zero_carry

T, B, D, H = 48, 2, 2, 4
CELL, READOUT = GRU(D, H), nn.Dense(1, param_dtype=jnp.float64)
LOSS = sequence_loss(CELL, READOUT, squared_error)


CARRY = zero_carry(CELL, (B,))
XS = np.random.default_rng(0).normal(size=(T, B, D))
BATCH = Batch(
    XS, np.cumsum(XS[..., :1], axis=0) / 3, weights=np.random.default_rng(1).random((T, B))
)


@pytest.fixture
def setting():
    return sequence_params(CELL, READOUT), CARRY, BATCH


def noisy(estimator: Estimator, size: float) -> Estimator:
    """Add a vector of independent normal numbers to the gradient: variance n size^2, no bias."""

    def estimate(params, memory, batch, key=None):
        if key is None:
            raise ValueError("noisy needs a key")
        gradient = estimator.estimate(params, memory, batch, key)
        leaves, tree = jax.tree.flatten(gradient.grads)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            g + size * jax.random.normal(k, g.shape, g.dtype)
            for g, k in zip(leaves, keys, strict=True)
        ]
        return gradient._replace(grads=jax.tree.unflatten(tree, drawn))

    return Estimator(estimator.init, estimate)


@pytest.mark.exhaustive
def test_truncation_of_a_linear_recurrence_has_its_closed_form_bias():
    # As in test_bias.py: K steps give (1 - a^K) / (1 - a) of dh/dw, so 1 - g / r = a^K late.
    a, T, late = 0.9, 400, 100
    cell = DiagonalLinear(1, 1)

    def loss_fn(w, carry, batch):
        params = jax.tree.map(jnp.asarray, cell_params(cell))._replace(
            a=jnp.asarray([a], w.dtype), w_x=w
        )
        carry, ys = jax.lax.scan(lambda c, x: cell(params, c, x), carry, batch.inputs)
        return jnp.sum(ys[:, 0] * batch.weights), carry

    cell_params(cell)  # drawn outside of jit
    batch = Batch(np.ones((T, 1)), None, (np.arange(T) >= T - late).astype(float))
    windows = {str(k): truncated_bptt(loss_fn, 1, k) for k in (5, 20)}
    given = np.ones((1, 1)), zero_carry(cell), batch
    rows = compare_estimators(windows, *given, reference=full_bptt(loss_fn), segment=T // 4)
    assert [row.estimator for row in rows] == ["5", "20"]
    for row in rows:
        assert row.bias == pytest.approx(a ** int(row.estimator), rel=1e-6)
        assert row.cosine == pytest.approx(1) and row.sign_agreement == 1
        assert (row.variance, row.bias_error, row.draws) == (0, 0, 1)


@pytest.mark.exhaustive
def test_agrees_with_estimator_bias_on_a_gru(setting):
    estimator, reference = truncated_bptt(LOSS, 8, 8), full_bptt(LOSS)
    (row,) = compare_estimators({"8": estimator}, *setting, reference=reference, segment=16)
    same = jax.jit(lambda *s: estimator_bias(estimator, reference, *s, segment=16))(*setting).bias
    assert 0.01 < row.bias < 1
    np.testing.assert_allclose(row[1:5:2], (same.relative_error, same.cosine), rtol=1e-9)
    assert row.sign_agreement == same.sign_agreement


def test_noise_counts_as_variance_and_not_as_bias(setting):
    reference = full_bptt(LOSS)
    estimators = {
        "exact": reference,
        "noisy": noisy(reference, 0.1),
        "wrong": noisy(truncated_bptt(LOSS, 4, 4), 0.1),
    }
    rows = compare_estimators(
        estimators, *setting, reference=reference, key=jax.random.key(1), draws=400, repeats=1
    )
    exact, drawn, wrong = rows
    r = np.concatenate(
        [np.ravel(g) for g in jax.tree.leaves(jax.jit(reference.estimate)(*setting).grads)]
    )
    assert (exact.bias, exact.variance, exact.draws) == (pytest.approx(0, abs=1e-12), 0, 1)
    assert drawn.variance == pytest.approx(0.01 * r.size / float(r @ r), rel=0.05)
    assert drawn.draws == 400 and drawn.bias_error == pytest.approx((drawn.variance / 400) ** 0.5)
    # The norm of the mean noise equals its standard error within a few percent for so many entries.
    assert drawn.bias == pytest.approx(drawn.bias_error, rel=0.2)
    assert wrong.bias > 3 * wrong.bias_error


def test_float32_is_measured_against_float64(setting):
    cell = GRU(D, H, dtype=jnp.float32)
    narrow = full_bptt(sequence_loss(cell, READOUT, squared_error))
    state = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), setting)
    (row,) = compare_estimators({"full": narrow}, *state, reference=full_bptt(LOSS), repeats=1)
    assert 1e-9 < row.bias < 1e-5
    with pytest.raises(
        ValueError, match="the reference does not run in float64.*carry.h must be float32"
    ):
        compare_estimators({"full": narrow}, *state, reference=narrow)


@pytest.mark.exhaustive
def test_costs_are_those_of_the_compiled_program(setting):
    # The residuals of full BPTT cover 64 windows, those of truncated BPTT one.
    xs = np.random.default_rng(0).normal(size=(2048, 1, D))
    params, carry, batch = setting[0], zero_carry(CELL, (1,)), Batch(xs, xs[..., :1])
    estimators = {"full": full_bptt(LOSS), "short": truncated_bptt(LOSS, 32, 32)}
    full, short = compare_estimators(
        estimators, params, carry, batch, reference=full_bptt(LOSS), repeats=2
    )
    assert full.bytes > 10 * short.bytes > 0
    assert 0 < full.seconds_per_step < 1e-2 and full.compile_seconds > 0.01


def test_the_frontier_is_pareto_optimal():
    def row(name, bias, seconds):
        return EstimatorRow(name, bias, 0, 1, 1, 0, 1, seconds, 1, 1)

    rows = [
        row("slow", 0.1, 3),
        row("fast", 0.5, 1),
        row("dominated", 0.6, 2),
        row("equal", 0.5, 1),
        row("exact", 0, 9),
    ]
    assert [r.estimator for r in frontier(rows)] == ["fast", "slow", "exact"]


def test_errors():
    def loss(params, carry, batch):
        return jnp.sum(batch.weights * jnp.sum((batch.inputs * params) ** 2, axis=-1)), carry

    full, key = full_bptt(loss), jax.random.key(0)
    setting = np.ones(D), (), BATCH
    with pytest.raises(ValueError, match="estimators is empty"):
        compare_estimators({}, *setting, reference=full)
    with pytest.raises(ValueError, match="draws must be at least 2"):
        compare_estimators({"full": full}, *setting, reference=full, draws=1)
    with pytest.raises(ValueError, match="segment=7"):
        compare_estimators({"full": full}, *setting, reference=full, segment=7)
    with pytest.raises(ValueError, match="mine failed without a key.*noisy needs a key"):
        compare_estimators({"mine": noisy(full, 1.0)}, *setting, reference=full)
    with pytest.raises(ValueError, match="T must be a positive multiple of k1"):
        compare_estimators({"seven": truncated_bptt(loss, 7, 7)}, *setting, reference=full, key=key)
    with pytest.raises(ValueError, match="the reference's gradient has norm"):
        compare_estimators(
            {"full": full}, *setting[:2], BATCH._replace(weights=np.zeros((T, B))), reference=full
        )
