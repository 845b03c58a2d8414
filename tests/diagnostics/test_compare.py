"""compare_estimators against closed forms of bias and variance, a random estimator, and costs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import DiagonalLinear
from tbptt.diagnostics import EstimatorRow, compare_estimators, frontier
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.losses.sequence import sequence_loss, squared_error
from tbptt.types import Batch, Estimator
from tests.support.sequences import sequence_params, zero_carry

T, B, D, H = 48, 2, 2, 20
CELL, READOUT = DiagonalLinear(D, H), nn.Dense(1, param_dtype=jnp.float64)
LOSS = sequence_loss(CELL, READOUT, squared_error)
N = 101  # numbers in the parameters of LOSS; another test has as many, so that programs are shared


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


def test_truncation_has_its_closed_form_bias_and_noise_counts_as_variance():
    """Use h' = a h + w x with x = 1, and the loss h in the last quarter of the steps.

    There dh/dw = 1 / (1 - a) up to a^40, and K steps of back-propagation give 1 - a^K of it.
    """
    a, T, late = np.linspace(0.2, 0.5, N), 160, 40

    def loss_fn(w, carry, batch):
        carry = jax.lax.scan(lambda h, x: 2 * [a * h + w * x], carry, batch.inputs)
        return jnp.sum(carry[1] * batch.weights[:, None]), carry[0]

    full, cut = full_bptt(loss_fn), truncated_bptt(loss_fn, 1, 5)
    estimators = {"exact": full, "cut": cut, "noisy": noisy(full, 0.1), "wrong": noisy(cut, 0.1)}
    batch = Batch(np.ones(T), None, (np.arange(T) >= T - late).astype(float))
    rows = compare_estimators(
        estimators,
        *(np.ones(N), np.zeros(N), batch),
        reference=full,
        segment=T // 2,
        key=jax.random.key(1),
        draws=400,
        repeats=1,
    )
    assert [row.estimator for row in rows] == list(estimators)
    exact, cut, drawn, wrong = rows
    r = 1 / (1 - a)
    g = r * (1 - a**5)
    assert (exact.bias, exact.variance, exact.draws) == (pytest.approx(0, abs=1e-12), 0, 1)
    norm = np.linalg.norm
    assert cut.bias == pytest.approx(norm(g - r) / norm(r), rel=1e-6)
    assert (
        cut.cosine == pytest.approx(g @ r / norm(g) / norm(r), rel=1e-9) and cut.cosine < 1 - 1e-5
    )
    assert cut.sign_agreement == 1 and (cut.variance, cut.bias_error, cut.draws) == (0, 0, 1)
    assert drawn.variance == pytest.approx(0.01 * r.size / float(r @ r), rel=0.05)
    assert drawn.draws == 400 and drawn.bias_error == pytest.approx((drawn.variance / 400) ** 0.5)
    # The norm of the mean noise equals its standard error within a few percent for so many entries.
    assert drawn.bias == pytest.approx(drawn.bias_error, rel=0.2)
    assert wrong.bias > 3 * wrong.bias_error


def test_float32_is_measured_against_float64(setting):
    cell = DiagonalLinear(D, H, dtype=jnp.float32)
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
