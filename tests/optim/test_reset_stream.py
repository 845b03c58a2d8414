"""reset_on_non_finite restarts the stream after a non-finite carry, and changes nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tbptt.cells import LSTM, Elman
from tbptt.diagnostics import monitored, saturation_probe
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.losses.sequence import sequence_loss, squared_error
from tbptt.optim import reset_on_non_finite, skip_non_finite
from tbptt.training import init_state, make_train_epoch, make_train_step, rewind
from tbptt.types import Batch
from tests.support.bad_numbers import READOUT, assert_equal, finite
from tests.support.sequences import sequence_params, steps_of, zero_carry

ESTIMATORS = {
    "full": full_bptt,
    "overlapping": functools.partial(truncated_bptt, k1=2, k2=5),
}
each_estimator = pytest.mark.parametrize(
    "name",
    [
        "overlapping",
        pytest.param("full", marks=pytest.mark.exhaustive),
    ],
)
CELL = Elman(2, 3)
PARAMS = sequence_params(CELL, READOUT, shift=0.1)
LOSS = sequence_loss(CELL, READOUT, squared_error)
T, CHUNK, CARRY = 16, 4, zero_carry(CELL, (2,))
_RANDOM = np.random.default_rng(1)
STREAM = Batch(
    _RANDOM.normal(size=(T, 2, 2)),
    _RANDOM.normal(size=(T, 2, 1)),
    None,
    np.zeros((T, 2), bool),
    np.ones((T, 2), bool),
)
BARE = STREAM._replace(resets=None, mask=None)
OPTIMIZER = skip_non_finite(optax.adam(1e-2))


@functools.cache
def compiled(name, flags):
    """Return (estimator, start, epoch), without and with reset_on_non_finite."""
    found, stream = [], STREAM if flags else BARE
    for estimator in (ESTIMATORS[name](LOSS), reset_on_non_finite(ESTIMATORS[name](LOSS))):
        start = functools.partial(
            jax.jit(functools.partial(init_state, estimator, OPTIMIZER)), PARAMS, CARRY, stream
        )
        found.append((estimator, start, make_train_epoch(estimator, OPTIMIZER, CHUNK)))
    return found


def run(epoch, state, stream):
    """Train on the chunks of a stream; return (state, metrics)."""
    found = []
    for begin in range(0, len(stream.inputs), CHUNK):
        state, metrics = epoch(state, steps_of(stream, begin, begin + CHUNK))
        found.append(jax.device_get(metrics))
    return state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("overlapping", True),
        pytest.param("full", False, marks=pytest.mark.exhaustive),
    ],
)
def test_training_continues_after_one_nan_input(name, flags):
    """Chunk 1 of 4 holds the NaN; without the wrapper every later update is skipped."""
    (estimator, start, epoch), (_, start_resetting, resetting_epoch) = compiled(name, flags)
    stream = STREAM if flags else BARE
    inputs = stream.inputs.copy()
    inputs[5, 0, 1] = np.nan
    poisoned = stream._replace(inputs=inputs)
    state, metrics = run(epoch, start(), poisoned)
    assert (
        metrics.non_finite.tolist() == [False] + 3 * [True] and int(state.opt_state.skip_count) == 3
    )
    state, metrics = jax.device_get(run(resetting_epoch, start_resetting(), poisoned))
    assert (
        metrics.non_finite.tolist()
        == metrics.info.restarted.tolist()
        == [False, True, False, False]
    )
    assert int(state.opt_state.skip_count) == 1 and metrics.info.restart_count.tolist() == [
        0,
        1,
        1,
        1,
    ]
    assert finite(state) and int(state.memory.restart_count) == 1
    # after it: the clean chunks as a stream of their own, from the initial carry
    again, _ = run(epoch, start(), steps_of(stream, 0, CHUNK))
    again = rewind(estimator, again, CARRY, stream)
    again, after = run(epoch, again, steps_of(stream, 2 * CHUNK, T))
    assert_equal((state.params, metrics.loss[2:]), (again.params, after.loss))


@each_estimator
def test_finite_results_are_unchanged(name):
    (_, start, epoch), (_, start_resetting, resetting_epoch) = compiled(name, True)
    resets, mask = np.zeros((T, 2), bool), np.ones((T, 2), bool)
    resets[9, 1], mask[6:11, 0] = True, False
    padded = STREAM._replace(
        inputs=np.where(mask[..., None], STREAM.inputs, np.nan), resets=resets, mask=mask
    )
    plain, plain_metrics = run(epoch, start(), padded)
    state, metrics = run(resetting_epoch, start_resetting(), padded)
    assert_equal((state.params, state.opt_state, state.memory.inner), plain[:3])
    assert_equal(metrics._replace(info=metrics.info.inner), plain_metrics)
    assert not np.any(metrics.info.restarted)


def test_a_non_finite_loss_gradient_or_carry_restarts():
    """A finite carry restarts too, if the loss or the gradient is not finite."""
    estimator, still = reset_on_non_finite(full_bptt(LOSS)), optax.set_to_zero()
    step, chunk = make_train_step(estimator, still), steps_of(STREAM, 0, 4)
    start = zero_carry(CELL, (2,))._replace(h=np.full((2, 3), 0.5))
    state = jax.jit(lambda: init_state(estimator, still, PARAMS, start, chunk))()
    state, _ = step(state, chunk)
    targets = chunk.targets.copy()
    targets[0] = 1e200
    state, metrics = step(state, chunk._replace(targets=targets))  # loss inf, carry fine
    assert bool(metrics.info.restarted) and finite(metrics.grad_norm)
    assert_equal(state.memory.inner, start)
    state, metrics = step(state, chunk)
    assert not bool(metrics.info.restarted) and int(metrics.info.restart_count) == 1

    def steep(params, carry, batch):  # its slope at 0 is infinite, its value is not
        loss, carry = LOSS(params, carry, batch)
        return loss + jnp.sum(jnp.sqrt(0 * params.readout["params"]["bias"])), carry

    def spoils(params, carry, batch):  # the loss has not seen it yet
        loss, carry = LOSS(params, carry, batch)
        return loss, carry._replace(h=carry.h.at[1, 0].set(jnp.nan))

    for loss_fn in (steep, spoils):
        gradient = jax.jit(reset_on_non_finite(full_bptt(loss_fn)).estimate)(
            PARAMS, state.memory, chunk
        )
        assert bool(gradient.info.restarted) and finite((gradient.loss, gradient.memory))
        assert finite(gradient.grads) == (loss_fn is spoils)
    gated = LSTM(2, 3)
    inner = full_bptt(sequence_loss(gated, READOUT, squared_error))
    watching = reset_on_non_finite(monitored(inner, {"gates": saturation_probe(gated)}))
    seen = jax.eval_shape(
        lambda p, c, b: watching.estimate(p, watching.init(p, c, b), b),
        sequence_params(gated, READOUT),
        zero_carry(gated, (2,)),
        chunk,
    )
    assert "f" in seen.info.inner.probes["gates"]
    assert int(rewind(estimator, state, start, chunk).memory.restart_count) == 0


def test_inputs_may_be_a_dict():
    def loss_fn(params, carry, batch):
        return jnp.sum(params * batch.inputs["x"]) + jnp.sum(batch.inputs["y"]), carry

    estimator = tbptt.optim.reset_on_non_finite(tbptt.truncated_bptt(loss_fn, 1, 2))
    inputs = {"x": np.ones((4, 2, 1)), "y": np.ones((4, 2))}
    batch = tbptt.Batch(inputs, None, weights=np.ones((4, 2)))

    @jax.jit
    def run(params, batch):
        return estimator.estimate(params, estimator.init(params, (), batch), batch)

    out = run(np.asarray(2.0), batch)
    assert float(out.grads) == 1 and not bool(out.info.restarted)
