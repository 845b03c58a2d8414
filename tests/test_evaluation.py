"""`make_evaluate` is the weighted mean; losses that are not additive over time are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt import make_evaluate
from tbptt.diagnostics import check_additive
from tests.support.sequences import sequence_params, zero_carry

CELL, READOUT = tbptt.Elman(2, 3), nn.Dense(1, param_dtype=float)
LOSS_FN = tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error)


def problem():
    draw = np.random.default_rng(0).normal
    weights = np.random.default_rng(1).uniform(size=(7, 2))
    batch = tbptt.Batch(draw(size=(7, 2, 2)), draw(size=(7, 2, 1)), weights=weights)
    return sequence_params(CELL, READOUT), zero_carry(CELL, (2,)), batch


def mean_loss(params, carry, batch):
    loss_sum, carry = LOSS_FN(params, carry, batch)
    return loss_sum / batch.inputs.shape[0], carry


def reads_backwards(params, carry, batch):
    flipped = batch._replace(inputs=jnp.flip(jnp.asarray(batch.inputs), 0))
    return LOSS_FN(params, carry, flipped)[0], LOSS_FN(params, carry, batch)[1]


def forgets(params, carry, batch):
    loss_sum, _ = LOSS_FN(params, carry, batch)
    return loss_sum, jax.tree.map(lambda leaf: leaf + batch.inputs.shape[0] ** 2, carry)


def counts_calls(params, carry, batch):
    return jnp.sum(batch.inputs), jax.tree.map(lambda leaf: leaf + 1, carry)  # the loss is additive


def test_a_sum_over_steps_is_additive():
    check_additive(LOSS_FN, *problem())


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (mean_loss, r"not additive over time: .* over T=7 steps, .* over its two halves"),
        (reads_backwards, "not additive over time"),
        (forgets, "not additive over time"),
        (counts_calls, r"carry\.h after two halves differs from that after all T=7 steps"),
    ],
)
def test_other_losses_are_refused(loss_fn, words):
    with pytest.raises(ValueError, match=words):
        check_additive(loss_fn, *problem())


def test_one_step_cannot_be_split():
    params, carry, batch = problem()
    with pytest.raises(ValueError, match="T >= 2 steps.*got T=1"):
        check_additive(LOSS_FN, params, carry, jax.tree.map(lambda a: a[:1], batch))


def test_an_evaluation_is_the_weighted_mean_and_checks_additivity_once():
    params, carry, batch = problem()
    loss_sum, _ = jax.jit(LOSS_FN)(params, carry, batch)
    evaluate = make_evaluate(LOSS_FN, carry, batch)
    for _ in range(2):
        np.testing.assert_allclose(evaluate(params), loss_sum / batch.weights.sum(), rtol=1e-12)
    with pytest.raises(ValueError, match="not additive over time"):
        make_evaluate(mean_loss, carry, batch)(params)
    assert np.isfinite(make_evaluate(mean_loss, carry, batch, check=False)(params))
    one_step = jax.tree.map(lambda a: a[:1], batch)
    assert np.isfinite(make_evaluate(LOSS_FN, carry, one_step)(params))
