"""A guarded estimator: a carry that went wrong starts again, and nothing changes while all is finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.clipping import guarded, skip_non_finite
from tbptt.diagnostics import monitored, saturation_probe
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.objectives import sequence_loss, squared_error
from tbptt.training import init_state, make_train_epoch, make_train_step, rewind
from tbptt.types import Batch
from tests.bad_numbers import CELL, PARAMS, READOUT, assert_equal, finite

ESTIMATORS = {
    "full": full_bptt,
    "disjoint": functools.partial(truncated_bptt, k1=4, k2=4),
    "overlapping": functools.partial(truncated_bptt, k1=2, k2=5),
}
each_estimator = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
LOSS = sequence_loss(CELL, READOUT, squared_error)
STREAM = Batch(jax.random.normal(jax.random.key(1), (24, 2, 2)), jax.random.normal(jax.random.key(2), (24, 2, 1)))


def trained(estimator, batch, policy=skip_non_finite):
    optimizer = policy(optax.adam(1e-2))
    state = init_state(estimator, optimizer, PARAMS, CELL.initial_carry((2,)), batch)
    return make_train_epoch(estimator, optimizer, 4)(state, batch)


@each_estimator
def test_one_nan_among_the_inputs_stops_nothing(make):
    """Chunk 1 of 6 holds one; the policy alone skips all that come after it."""
    poisoned = STREAM._replace(inputs=STREAM.inputs.at[5, 0, 1].set(jnp.nan))
    state, metrics = trained(make(LOSS), poisoned)
    assert metrics.non_finite.tolist() == [False] + 5 * [True] and int(state.opt_state.skip_count) == 5
    state, metrics = trained(guarded(make(LOSS)), poisoned)
    assert metrics.non_finite.tolist() == metrics.info.restarted.tolist() == [False, True] + 4 * [False]
    assert int(state.opt_state.skip_count) == 1 and metrics.info.restart_count.tolist() == [0, 1, 1, 1, 1, 1]
    assert finite(state) and int(state.memory.restart_count) == 1
    # after it: the clean chunks as a stream of their own, from the initial carry
    optimizer = skip_non_finite(optax.adam(1e-2))
    first, rest = (jax.tree.map(lambda a, s=s: a[s], STREAM) for s in (slice(0, 4), slice(8, 24)))
    plain = make(LOSS)
    again, _ = trained(plain, first)
    again, after = make_train_epoch(plain, optimizer, 4)(rewind(plain, again, CELL.initial_carry((2,)), rest), rest)
    assert_equal((state.params, metrics.loss[2:]), (again.params, after.loss))


@each_estimator
def test_guarded_changes_nothing_while_all_is_finite(make):
    resets = jnp.zeros((24, 2), bool).at[9, 1].set(True)
    mask = jnp.ones((24, 2), bool).at[6:11, 0].set(False)
    padded = STREAM._replace(inputs=jnp.where(mask[..., None], STREAM.inputs, jnp.nan), resets=resets, mask=mask)
    plain, plain_metrics = trained(make(LOSS), padded)
    state, metrics = trained(guarded(make(LOSS)), padded)
    assert_equal((state.params, state.opt_state, state.memory.inner), plain[:3])
    assert_equal(metrics._replace(info=metrics.info.inner), plain_metrics)
    assert not np.any(metrics.info.restarted)


def test_guarded_at_a_bad_loss_and_a_bad_gradient_and_in_a_step():
    """Not only a NaN carry: a carry that is finite and useless would stay too."""
    estimator, still = guarded(full_bptt(LOSS)), optax.set_to_zero()
    step, piece = make_train_step(estimator, still), jax.tree.map(lambda a: a[:4], STREAM)
    start = CELL.initial_carry((2,))._replace(h=jnp.full((2, 3), 0.5))
    state = init_state(estimator, still, PARAMS, start, piece)
    state, _ = step(state, piece)
    state, metrics = step(state, piece._replace(targets=piece.targets.at[0].set(1e200)))  # loss inf, carry fine
    assert bool(metrics.info.restarted) and finite(metrics.grad_norm)
    assert_equal(state.memory.inner, start)
    state, metrics = step(state, piece)
    assert not bool(metrics.info.restarted) and int(metrics.info.restart_count) == 1

    def steep(params, carry, batch):  # its slope at 0 is infinite, its value is not
        loss, carry = LOSS(params, carry, batch)
        return loss + jnp.sum(jnp.sqrt(0 * params.readout["params"]["bias"])), carry

    gradient = guarded(full_bptt(steep)).estimate(PARAMS, state.memory, piece)
    assert bool(jnp.isfinite(gradient.loss)) and bool(gradient.info.restarted)

    def spoils(params, carry, batch):  # the loss has not seen it yet
        loss, carry = LOSS(params, carry, batch)
        return loss, carry._replace(c=carry.c.at[1, 0].set(jnp.nan))

    gradient = guarded(full_bptt(spoils)).estimate(PARAMS, state.memory, piece)
    assert finite((gradient.loss, gradient.grads, gradient.memory)) and bool(gradient.info.restarted)
    watching = guarded(monitored(full_bptt(LOSS), {"gates": saturation_probe(CELL)}))
    seen = watching.estimate(PARAMS, watching.init(PARAMS, start, piece), piece)
    assert "f" in seen.info.inner.probes["gates"]
    assert int(rewind(estimator, state, start, piece).memory.restart_count) == 0
