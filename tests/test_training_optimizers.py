"""A train step reports clipping, and trains with optimizers that store more than moments."""

import jax
import jax.numpy as jnp
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


def regression(params, carry, batch):
    """A loss whose gradient is linear in its parameters."""
    errors = batch.inputs @ params["w"] + params["b"] - batch.targets
    return jnp.sum(errors**2), carry


def short_run(optimizer, updates=3, loss_fn=regression, inputs=()):
    """Return the metrics of a few updates, all with the same random inputs if none are given."""
    draw = np.random.default_rng(0).normal
    params = {"w": draw(size=2), "b": draw(size=())}
    batch = tbptt.Batch(draw(size=(4, 2, 2)), draw(size=(4, 2)))
    estimator = tbptt.full_bptt(loss_fn)
    state = jax.jit(lambda p: tbptt.init_state(estimator, optimizer, p, (), batch))(params)
    step, metrics = tbptt.make_train_step(estimator, optimizer), []
    for xs in inputs or [batch.inputs] * updates:
        state, seen = step(state, batch._replace(inputs=xs))
        metrics.append(jax.device_get(seen))
    return metrics


def test_two_clippings_in_a_chain_are_both_reported():
    def slopes(params, carry, batch):  # the gradient is inputs[0, 0]; the mean is over 8 steps
        return 8 * jnp.sum(params["w"] * batch.inputs[0, 0]), carry

    chain = optax.chain(
        with_clip_stats(optax.clip_by_global_norm(1.0)),
        with_clip_stats(optax.clip(0.75)),
        optax.sgd(0.1),
    )
    wanted = np.array([[2.0, 2.0], [0.9, 0.1], [0.1, 0.2]])  # too long, an entry too large, neither
    inputs = [np.broadcast_to(slope, (4, 2, 2)) for slope in wanted]
    metrics = short_run(chain, loss_fn=slopes, inputs=inputs)
    np.testing.assert_allclose([m.grad_norm for m in metrics], np.linalg.norm(wanted, axis=1))
    assert [bool(m.clipped) for m in metrics] == [True, True, False]


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
