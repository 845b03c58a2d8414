"""A train step reports clipping, and trains with optimizers that store more than moments."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import tbptt
from tbptt.optim import ClipStatsState, with_clip_stats


def test_with_clip_stats_passes_gradients_exactly_and_counts():
    clip, seen = optax.clip_by_global_norm(1.0), with_clip_stats(optax.clip_by_global_norm(1.0))
    grads = {"w": np.array([0.3, -0.4]), "b": np.array(0.1)}
    state = jax.jit(seen.init)(grads)
    assert isinstance(state, ClipStatsState) and not bool(state.clipped)
    ours, theirs = jax.jit(seen.update), jax.jit(lambda g: clip.update(g, clip.init(g))[0])
    for scale, clipped, count in (
        (1.0, False, 0),
        (50.0, True, 1),
        (2.5, True, 2),
        (0.1, False, 2),
    ):
        scaled = jax.tree.map(lambda g, s=scale: s * g, grads)
        new, state = ours(scaled, state)
        for got, want in zip(*map(jax.tree.leaves, (new, theirs(scaled))), strict=True):
            np.testing.assert_array_equal(got, want)
        assert (bool(state.clipped), int(state.clip_count)) == (clipped, count)


def short_run(optimizer, updates=3):
    """The metrics of a few updates of a small network with an optimizer."""
    cell, readout = tbptt.GRU(2, 3), nn.Dense(1, param_dtype=float)
    params = tbptt.init_params(jax.random.key(0), cell, readout)
    draw = np.random.default_rng(0).normal
    batch = tbptt.Batch(draw(size=(4, 2, 2)), draw(size=(4, 2, 1)))
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
    estimator = tbptt.full_bptt(loss_fn)
    carry = cell.initial_carry((2,))
    state = tbptt.init_state(estimator, optimizer, params, carry, batch)
    step, metrics = tbptt.make_train_step(estimator, optimizer), []
    for _ in range(updates):
        state, seen = step(tbptt.rewind(estimator, state, carry, batch), batch)
        metrics.append(seen)
    return metrics


def test_two_clippings_in_a_chain_are_both_reported():
    for first, second, clipped in ((1e-3, 1e9, True), (1e9, 1e-9, True), (1e9, 1e9, False)):
        chain = optax.chain(
            with_clip_stats(optax.clip_by_global_norm(first)),
            with_clip_stats(optax.clip(second)),
            optax.sgd(0.1),
        )
        (metrics,) = short_run(chain, updates=1)
        assert bool(metrics.clipped) is clipped


def test_clipped_is_false_between_the_updates_of_multi_steps():
    optimizer = optax.MultiSteps(
        optax.chain(tbptt.optim.clip_by_global_norm(1e-3), optax.sgd(0.1)), every_k_schedule=2
    )
    clipped = [bool(metrics.clipped) for metrics in short_run(optimizer, updates=5)]
    assert clipped == [False, True, False, True, False]


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.contrib.prodigy(1.0),
        lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
        lambda: optax.polyak_sgd(),
        pytest.param(lambda: optax.contrib.dog(), marks=pytest.mark.exhaustive),
        pytest.param(lambda: optax.contrib.dowg(), marks=pytest.mark.exhaustive),
        pytest.param(lambda: optax.contrib.cocob(), marks=pytest.mark.exhaustive),
        pytest.param(lambda: optax.contrib.momo(), marks=pytest.mark.exhaustive),
        pytest.param(lambda: optax.contrib.momo_adam(), marks=pytest.mark.exhaustive),
        pytest.param(lambda: optax.lbfgs(), marks=pytest.mark.exhaustive),
    ],
    ids=["prodigy", "reduce_on_plateau", "polyak_sgd", "dog", "dowg", "cocob", "momo"]
    + ["momo_adam", "lbfgs"],
)
def test_optimizers_that_store_params_or_need_the_loss_train(make):
    """They keep params in their state, which is donated, or take the value of the loss."""
    losses = [float(metrics.loss) for metrics in short_run(make())]
    assert np.all(np.isfinite(losses)) and min(losses[1:]) < losses[0]
