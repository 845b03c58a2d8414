"""Training: an epoch equals its chunks in sequence; the carry continues; metrics are correct."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import Elman
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.losses.sequence import sequence_loss, squared_error
from tbptt.optim import with_clip_stats
from tbptt.training import init_state, make_train_epoch, make_train_step, rewind
from tbptt.types import Batch, Estimator, Gradient
from tests.support.sequences import sequence_params, steps_of, zero_carry

T, B, D, H, CHUNK = 24, 2, 2, 3, 8
CELL, READOUT = Elman(D, H), nn.Dense(1, param_dtype=jnp.float64)
LOSS = sequence_loss(CELL, READOUT, squared_error)
ADAM = optax.adam(1e-2)
ESTIMATORS = {
    "full": full_bptt,
    "disjoint": functools.partial(truncated_bptt, k1=4, k2=4),
    "overlapping": functools.partial(truncated_bptt, k1=4, k2=10),
}
each_estimator = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] * (name != "overlapping"))
        for name in ESTIMATORS
    ],
)
CARRY = zero_carry(CELL, (B,))
XS = np.random.default_rng(1).normal(size=(T, B, D))
BATCH = Batch(
    XS,
    np.cumsum(XS[..., :1], axis=0) / 3,
    weights=np.random.default_rng(2).random((T, B)),
    mask=np.random.default_rng(3).random((T, B)) < 0.8,
)
WEIGHTS = BATCH.weights * BATCH.mask
CHUNKS = [steps_of(BATCH, t, t + CHUNK) for t in range(0, T, CHUNK)]
start = jax.jit(init_state, static_argnums=(0, 1))  # estimator, optimizer


@pytest.fixture
def params():
    return sequence_params(CELL, READOUT, shift=0.1)


@functools.cache
def compiled(name):
    """Return an estimator, its step and its epoch; each is compiled once for all tests."""
    estimator = ESTIMATORS[name](LOSS)
    return estimator, make_train_step(estimator, ADAM), make_train_epoch(estimator, ADAM, CHUNK)


def assert_same(got, want, tol=1e-12):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol), got, want)


def plain(tree):
    return jax.tree.map(np.asarray, tree)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def window(params, carry, batch, counts):
    """Return the loss of the steps that count, and the carry after every step."""

    def step(carry, one):
        loss_sum, carry = LOSS(params, carry, one)
        return carry, (loss_sum, carry)

    _, (losses, carries) = jax.lax.scan(step, carry, jax.tree.map(lambda a: a[:, None], batch))
    return jnp.sum(losses * counts), carries


@jax.jit
def adam_step(params, opt_state, grads):
    updates, opt_state = ADAM.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def reference(make, params, carry, passes=1):
    """Train by a plain loop over chunks and windows, without estimators and training.

    Each chunk has `passes` updates, all from the carries before it.
    """
    k1, k2 = make.keywords.values() if make is not full_bptt else (CHUNK, CHUNK)
    opt_state, carries, losses, norms = plain(jax.jit(ADAM.init)(params)), {0: carry}, [], []
    before = carries
    for update in range(T // CHUNK * passes):
        first = update // passes * CHUNK
        last = first + CHUNK
        before = carries if update % passes == 0 else before
        carries = before
        loss_sum, sums = 0.0, jax.tree.map(np.zeros_like, params)
        for end in range(first + k1, last + 1, k1):
            at = np.arange(end - k2, end)  # steps before the first are masked
            steps = jax.tree.map(lambda a, at=at: a[np.maximum(at, 0)], BATCH)
            steps = steps._replace(mask=steps.mask & (at >= 0)[:, None])
            entering = carries[max(end - k2, 0)]
            (window_sum, seen), g = plain(window(params, entering, steps, at >= end - k1))
            after = (jax.tree.map(lambda a, t=t: a[t], seen) for t in range(k2))
            carries |= {t + 1: carry for t, carry in zip(at, after, strict=True) if t >= 0}
            loss_sum, sums = loss_sum + window_sum, jax.tree.map(np.add, sums, g)
        scale = 1 / np.sum(WEIGHTS[first:last])
        grads = jax.tree.map(functools.partial(np.multiply, scale), sums)
        losses.append(loss_sum * scale)
        norms.append(np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads))))
        params, opt_state = plain(adam_step(params, opt_state, grads))
    return params, opt_state, np.stack(losses), np.stack(norms)


@each_estimator
def test_an_epoch_equals_its_steps_and_the_plain_loop(name, params):
    estimator, step, epoch = compiled(name)
    whole, metrics = plain(epoch(start(estimator, ADAM, params, CARRY, BATCH), BATCH))
    state, seen = start(estimator, ADAM, params, CARRY, BATCH), []
    for chunk in CHUNKS:
        state, m = step(state, chunk)
        seen.append(plain(m))
    assert_same(whole, plain(state))
    assert_same(metrics, jax.tree.map(lambda *m: np.stack(m), *seen))
    assert metrics.loss.shape == (3,) and metrics.clipped is None and not np.any(metrics.non_finite)
    assert int(whole.step) == 3 and whole.key is None
    want = reference(ESTIMATORS[name], params, CARRY)
    assert_same((whole.params, whole.opt_state, metrics.loss, metrics.grad_norm), want)
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), params, whole.params)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_several_passes_over_one_chunk_equal_the_plain_loop(params):
    """Run the recipe of docs/training.md: a copy of the memory enters every pass."""
    estimator, step, _ = compiled("overlapping")
    state, losses = start(estimator, ADAM, params, CARRY, BATCH), []
    for chunk in CHUNKS:
        before = jax.tree.map(jnp.copy, state.memory)
        for _ in range(3):
            state = state._replace(memory=jax.tree.map(jnp.copy, before))
            state, metrics = step(state, chunk)
            losses.append(float(metrics.loss))
    want = reference(ESTIMATORS["overlapping"], params, CARRY, passes=3)
    assert_same((plain(state.params), np.stack(losses)), (want[0], want[2]))


def test_the_carry_continues_and_rewind_resets_it(params):
    estimator, step, _ = compiled("full")

    def one_more(change):
        state, _ = step(start(estimator, ADAM, params, CARRY, BATCH), CHUNKS[0])
        return plain(step(change(state), CHUNKS[1]))

    carried, carried_metrics = one_more(lambda s: s)
    zeroed, zeroed_metrics = one_more(lambda s: s._replace(memory=CARRY))
    rewound, rewound_metrics = one_more(lambda s: rewind(estimator, s, CARRY, BATCH))
    assert abs(carried_metrics.loss - zeroed_metrics.loss) > 1e-3
    assert_same((rewound, rewound_metrics), (zeroed, zeroed_metrics), 0)
    assert np.linalg.norm(carried.params.cell.w_h - zeroed.params.cell.w_h) > 1e-4


def test_rewind_restarts_overlapping_windows(params):
    estimator, _, epoch = compiled("overlapping")

    def fresh():
        return start(estimator, ADAM, params, CARRY, BATCH)

    def untrained(state):  # the memory of `state`, the parameters of a fresh one
        return fresh()._replace(memory=state.memory)

    state, first = epoch(fresh(), BATCH)
    again, third = untrained(rewind(estimator, state, CARRY, BATCH)), untrained(state)
    assert_same(plain(epoch(again, BATCH)[1]), plain(first), 0)
    assert (
        abs(float(epoch(third, BATCH)[1].loss[0]) - float(first.loss[0])) > 1e-3
    )  # without rewind the stream continues


@each_estimator
def test_one_trace_however_many_chunks(name):
    """By shapes only: a step preserves the shapes, dtypes and weak types of the state."""
    traces, params, carry = [], {"w": np.ones(D)}, np.zeros(B)

    def counted(params, carry, batch):
        traces.append(1)
        return jnp.sum(params["w"] * batch.inputs), carry + jnp.sum(batch.inputs)

    def traces_of(make, *batches):
        estimator = ESTIMATORS[name](counted)
        step = make(estimator, ADAM)
        state = jax.eval_shape(lambda p, c: init_state(estimator, ADAM, p, c, BATCH), params, carry)
        traces.clear()
        state, _ = jax.eval_shape(step, state, batches[0])
        first = len(traces)
        for batch in batches[1:]:
            state, _ = jax.eval_shape(step, state, batch)
        assert len(traces) == first  # no new trace
        return first

    epoch = functools.partial(make_train_epoch, chunk=CHUNK)
    assert traces_of(epoch, BATCH, BATCH) == traces_of(epoch, CHUNKS[0], CHUNKS[0]) > 0
    assert traces_of(make_train_step, *CHUNKS) > 0


def test_metrics_are_before_clipping_and_report_whether_it_clipped(params):
    estimator, step, _ = compiled("full")
    batches = CHUNKS[0], CHUNKS[0]._replace(targets=10 * CHUNKS[0].targets)
    reference = jax.jit(jax.value_and_grad(LOSS, has_aux=True))
    want = []
    for batch in batches:
        (loss_sum, _), grads = plain(reference(params, CARRY, batch))
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
        weight = np.sum(batch.weights * batch.mask)
        want.append((loss_sum / weight, norm / weight))
    assert want[0][1] > 1e-2 and want[1][1] > 2 * want[0][1]
    optimizer = optax.chain(with_clip_stats(optax.clip_by_global_norm(1.5 * want[0][1])), ADAM)
    clipping = make_train_step(estimator, optimizer)
    for batch, expected, clipped in zip(batches, want, (False, True), strict=True):
        _, without = step(start(estimator, ADAM, params, CARRY, batch), batch)
        _, within = clipping(start(estimator, optimizer, params, CARRY, batch), batch)
        assert_same((without.loss, without.grad_norm), expected)
        assert_same((within.loss, within.grad_norm), expected)
        assert without.clipped is None and bool(within.clipped) is clipped


def test_non_finite_is_flagged(params):
    estimator, _, epoch = compiled("overlapping")
    targets = BATCH.targets.copy()
    targets[10] = np.nan
    _, metrics = plain(
        epoch(start(estimator, ADAM, params, CARRY, BATCH), BATCH._replace(targets=targets))
    )
    assert metrics.non_finite.tolist()[:2] == [False, True]
    assert np.isfinite(metrics.loss[0]) and np.isnan(metrics.loss[1])


def test_the_users_arrays_survive_donation(params):
    estimator, step, _ = compiled("full")
    given, carry = jax.tree.map(jnp.asarray, (params, CARRY))
    state = init_state(estimator, ADAM, given, carry, CHUNKS[0])
    after, _ = step(state, CHUNKS[0])
    assert_same(given, params, 0)
    assert_same(carry, CARRY, 0)
    assert state.params.cell.w_h.is_deleted() and not after.params.cell.w_h.is_deleted()
    with pytest.raises(ValueError, match="state was donated .* `state, metrics = step"):
        step(state, CHUNKS[0])
    step(rewind(estimator, after, carry, CHUNKS[0]), CHUNKS[0])
    assert_same(carry, CARRY, 0)  # rewind copies it too


def test_other_things_than_estimators_and_optimizers_are_named(params):
    estimator = full_bptt(LOSS)
    # Unwrapped, because jaxtyping's hook checks the arguments before the library does.
    step, init = map(inspect.unwrap, (make_train_step, init_state))
    for make in (step, lambda *parts: init(*parts, params, CARRY, BATCH)):
        with pytest.raises(TypeError, match="estimator must be an Estimator.*got function"):
            make(LOSS, ADAM)
        with pytest.raises(TypeError, match="optimizer must be an optax transf.*got float"):
            make(estimator, 0.1)


def estimator_of(estimate):
    """Return an estimator of one parameter with the given estimate, its params and carry."""
    return Estimator(lambda params, carry, batch: carry, estimate), {"w": np.zeros(2)}, np.zeros(())


def test_keys_are_consumed():
    def estimate(params, memory, batch, key=None):
        return Gradient(jax.random.uniform(key, dtype=float), params, memory, ())

    noisy, params, carry = estimator_of(estimate)
    batch = Batch(np.zeros((T, 1)), np.zeros((T, 1)))
    state = start(noisy, ADAM, params, carry, batch, jax.random.key(3))
    _, metrics = make_train_epoch(noisy, ADAM, CHUNK)(state, batch)
    assert len(set(metrics.loss.tolist())) == 3


def test_chunk_must_divide(params):
    estimator = full_bptt(LOSS)
    with pytest.raises(
        ValueError, match=r"multiple of chunk; got T=24, chunk=5\. Pad the batch to T=25"
    ):
        make_train_epoch(estimator, ADAM, 5)(start(estimator, ADAM, params, CARRY, BATCH), BATCH)
    with pytest.raises(ValueError, match=r"chunk must be at least 1 step; got chunk=0"):
        make_train_epoch(estimator, ADAM, 0)


def test_the_norm_of_a_huge_gradient_is_finite():
    """Four float32 entries of 2e19: their squares overflow, their norm does not."""

    def huge(params, carry, batch):
        return jnp.sum(params * jnp.float32(2e19)), carry

    estimator, optimizer = full_bptt(huge), optax.sgd(0.0)
    batch = Batch(np.zeros((1, 1), np.float32), np.zeros((1, 1)))
    state = start(estimator, optimizer, np.ones(4, np.float32), (), batch)
    _, metrics = make_train_step(estimator, optimizer)(state, batch)
    np.testing.assert_allclose(metrics.grad_norm, 4e19, rtol=1e-6)
    assert not metrics.non_finite


def test_non_finite_checks_loss_and_gradient():
    def estimate(params, memory, batch, key=None):
        return Gradient(batch.inputs[0, 0], {"w": batch.inputs[1]}, memory, ())

    given, params, carry = estimator_of(estimate)
    optimizer = optax.sgd(0.1)
    step = make_train_step(given, optimizer)
    for loss, entry, expected in (
        (1.0, 2.0, False),
        (np.nan, 2.0, True),
        (1.0, np.inf, True),
        (1.0, -np.nan, True),
    ):
        batch = Batch(np.array([[loss, 0.0], [1.0, entry]]), np.zeros((2, 1)))
        _, metrics = step(start(given, optimizer, params, carry, batch), batch)
        assert bool(metrics.non_finite) is expected


@pytest.mark.parametrize(
    ("leaf", "message"),
    [(jnp.tanh, "must be an array.*eqx.partition"), (np.arange(2), "must be floating.*int64")],
)
def test_params_that_cannot_be_differentiated_are_named(leaf, message):
    with pytest.raises(TypeError, match=rf"params\['extra'\] {message}"):
        init_state(full_bptt(LOSS), ADAM, {"w": np.ones(3), "extra": leaf}, CARRY, BATCH)


def test_a_chunk_in_which_no_step_counts_changes_the_carry_alone(params):
    estimator, step, _ = compiled("overlapping")
    batch = CHUNKS[0]
    for empty in (
        batch._replace(weights=np.zeros((CHUNK, B))),
        batch._replace(mask=np.zeros((CHUNK, B), bool)),
    ):
        state, _ = step(start(estimator, ADAM, params, CARRY, batch), batch)
        before = jax.device_get(state)
        state, metrics = step(state, empty)
        assert int(state.step) == 2 and float(metrics.grad_norm) == float(metrics.loss) == 0
        for a, b in zip(
            *(jax.tree.leaves((s.params, s.opt_state)) for s in (state, before)), strict=True
        ):
            assert np.array_equal(a, b)
        changed = jax.tree.map(lambda a, b: np.any(a != b), plain(state.memory), before.memory)
        assert any(jax.tree.leaves(changed))
        assert np.any(changed.carry.h) or not empty.mask.any()
        state, _ = step(state, batch)
        assert np.any(plain(state.params.cell.w_h) != before.params.cell.w_h)
