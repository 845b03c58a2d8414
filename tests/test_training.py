"""Training: an epoch is its chunks one after another, the carry is carried, and the metrics tell the truth."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import GRU
from tbptt.clipping import WatchedState, watched
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.objectives import init_params, sequence_loss, squared_error
from tbptt.training import init_state, make_train_epoch, make_train_step, rewind
from tbptt.types import Batch, Estimator, Gradient
from tbptt.unroll import unroll
from tbptt.windows import split, total_weight

T, B, D, H, CHUNK = 24, 2, 2, 3, 8
CELL, READOUT = GRU(D, H), nn.Dense(1, param_dtype=jnp.float64)
LOSS = sequence_loss(CELL, READOUT, squared_error)
ADAM = optax.adam(1e-2)
ESTIMATORS = {
    "full": full_bptt,
    "disjoint": functools.partial(truncated_bptt, k1=4, k2=4),
    "overlapping": functools.partial(truncated_bptt, k1=4, k2=10),
}
each_estimator = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.fixture
def params(key):
    drawn = init_params(key, CELL, READOUT)
    return jax.tree.map(lambda p: p + 0.1, drawn)


@pytest.fixture
def batch():
    k_x, k_w = jax.random.split(jax.random.key(1))
    xs = jax.random.normal(k_x, (T, B, D))
    return Batch(xs, jnp.cumsum(xs[..., :1], axis=0) / 3, weights=jax.random.uniform(k_w, (T, B)))


def start(estimator, optimizer, params, batch, carry=None):
    return init_state(estimator, optimizer, params, CELL.initial_carry((B,)) if carry is None else carry, batch)


def assert_same(got, want, tol=1e-12):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol), got, want)


def chunks(batch):
    return split(batch, *range(CHUNK, T, CHUNK))


@functools.partial(jax.jit, static_argnums=3)
@functools.partial(jax.value_and_grad, has_aux=True)
def window(params, carry, batch, replayed):
    """The loss of all but the replayed steps, run one step a piece, and the carry at every step."""
    total, carries = 0.0, [carry]
    for t, step in enumerate(split(batch, *range(1, len(batch.inputs)))):
        piece_sum, carry = LOSS(params, carry, step)
        carries.append(carry)
        total = total + piece_sum if t >= replayed else total
    return total, carries


def by_hand(make, params, batch, carry):
    """Each chunk, each window of its own: nothing of the estimators or of training is used."""
    k1, k2 = make.keywords.values() if make is not full_bptt else (CHUNK, CHUNK)
    opt_state, carries, losses, norms = ADAM.init(params), {0: carry}, [], []
    for first, last in zip(range(0, T, CHUNK), range(CHUNK, T + 1, CHUNK), strict=True):
        loss_sum, sums = 0.0, jax.tree.map(jnp.zeros_like, params)
        for end in range(first + k1, last + 1, k1):
            begin = max(0, end - k2)
            piece = jax.tree.map(lambda a, s=slice(begin, end): a[s], batch)
            (piece_sum, seen), g = window(params, carries[begin], piece, end - k1 - begin)
            carries |= dict(zip(range(begin, end + 1), seen, strict=True))
            loss_sum, sums = loss_sum + piece_sum, jax.tree.map(jnp.add, sums, g)
        scale = 1 / jnp.sum(batch.weights[first:last])
        grads = jax.tree.map(functools.partial(jnp.multiply, scale), sums)
        losses, norms = [*losses, loss_sum * scale], [*norms, optax.tree.norm(grads)]
        updates, opt_state = ADAM.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params, opt_state, jnp.stack(losses), jnp.stack(norms)


@each_estimator
def test_epoch_is_its_steps_is_the_loop_by_hand(make, params, batch):
    estimator = make(LOSS)
    step, epoch = make_train_step(estimator, ADAM), make_train_epoch(estimator, ADAM, CHUNK)
    whole, metrics = epoch(start(estimator, ADAM, params, batch), batch)
    state, seen = start(estimator, ADAM, params, batch), []
    for chunk in chunks(batch):
        state, m = step(state, chunk)
        seen.append(m)
    assert_same(whole, state)
    assert_same(metrics, jax.tree.map(lambda *m: jnp.stack(m), *seen))
    assert metrics.loss.shape == (3,) and metrics.clipped is None and not np.any(metrics.non_finite)
    assert int(whole.step) == 3 and whole.key is None
    hand = by_hand(make, params, batch, CELL.initial_carry((B,)))
    assert_same((whole.params, whole.opt_state, metrics.loss, metrics.grad_norm), hand)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params, whole.params)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_the_carry_is_carried_and_rewind_forgets_it(params, batch):
    estimator, frozen = full_bptt(LOSS), optax.set_to_zero()
    step = make_train_step(estimator, ADAM)
    state, _ = make_train_epoch(estimator, frozen, CHUNK)(start(estimator, frozen, params, batch), batch)
    assert_same(state.memory, unroll(CELL, params.cell, CELL.initial_carry((B,)), batch.inputs)[0])
    assert_same(state.params, params, 0)

    def one_more(first_of_all):
        state, _ = step(start(estimator, ADAM, params, batch), chunks(batch)[0])
        state = first_of_all(state)
        return step(state, chunks(batch)[1])

    zero = functools.partial(CELL.initial_carry, (B,))  # made anew each time: a step donates what it is given
    carried, carried_metrics = one_more(lambda s: s)
    zeroed, zeroed_metrics = one_more(lambda s: s._replace(memory=zero()))
    rewound, rewound_metrics = one_more(lambda s: rewind(estimator, s, zero(), batch))
    assert abs(float(carried_metrics.loss - zeroed_metrics.loss)) > 1e-3
    assert_same((rewound, rewound_metrics), (zeroed, zeroed_metrics), 0)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, carried.params, zeroed.params))) > 1e-4


def test_rewind_restarts_overlapping_windows(params, batch):
    estimator = truncated_bptt(LOSS, 4, 10)
    epoch = make_train_epoch(estimator, optax.set_to_zero(), CHUNK)
    state, first = epoch(start(estimator, optax.set_to_zero(), params, batch), batch)
    state, second = epoch(rewind(estimator, state, CELL.initial_carry((B,)), batch), batch)
    assert_same(second, first, 0)
    _, third = epoch(state, batch)  # without it the stream goes on
    assert abs(float(third.loss[0] - first.loss[0])) > 1e-3


@each_estimator
def test_one_trace_however_many_chunks(make, params, batch):
    traces = []

    def counted(params, carry, batch):
        traces.append(1)
        return LOSS(params, carry, batch)

    def traces_of(chunk, state_batch):
        estimator = make(counted)
        state, epoch = start(estimator, ADAM, params, batch), make_train_epoch(estimator, ADAM, chunk)
        traces.clear()
        state, _ = epoch(state, state_batch)
        first = len(traces)
        epoch(state, state_batch)
        assert len(traces) == first  # the second epoch traces nothing
        return first

    assert traces_of(CHUNK, batch) == traces_of(CHUNK, chunks(batch)[0]) > 0
    estimator = make(counted)
    state, step = start(estimator, ADAM, params, batch), make_train_step(estimator, ADAM)
    traces.clear()
    state, _ = step(state, chunks(batch)[0])
    first = len(traces)
    for chunk in chunks(batch)[1:]:
        state, _ = step(state, chunk)
    assert len(traces) == first


def test_metrics_are_before_clipping_and_say_whether_it_clipped(params, batch):
    estimator = full_bptt(LOSS)
    metrics = {}
    for bound in (None, 1e-6, 1e6):
        clip = [] if bound is None else [watched(optax.clip_by_global_norm(bound))]
        optimizer = optax.chain(*clip, ADAM)
        step = make_train_step(estimator, optimizer)
        _, metrics[bound] = step(start(estimator, optimizer, params, batch), batch)
    (loss_sum, _), grads = jax.value_and_grad(LOSS, has_aux=True)(params, CELL.initial_carry((B,)), batch)
    norm = optax.tree.norm(grads) / total_weight(batch)
    for m in metrics.values():
        assert_same((m.loss, m.grad_norm), (loss_sum / total_weight(batch), norm))
    assert float(norm) > 1e-2
    assert [None if m.clipped is None else bool(m.clipped) for m in metrics.values()] == [None, True, False]


def test_non_finite_is_flagged(params, batch):
    estimator = full_bptt(LOSS)
    bad = batch._replace(targets=batch.targets.at[10].set(jnp.nan))
    state, metrics = make_train_epoch(estimator, optax.sgd(0.0), CHUNK)(
        start(estimator, optax.sgd(0.0), params, batch), bad
    )
    assert metrics.non_finite.tolist()[:2] == [False, True]
    assert bool(jnp.isfinite(metrics.loss[0])) and bool(jnp.isnan(metrics.loss[1]))


def test_the_users_arrays_survive_donation(params, batch):
    estimator, carry = full_bptt(LOSS), CELL.initial_carry((B,))
    before = jax.tree.map(np.array, params)
    state = start(estimator, ADAM, params, batch, carry)
    after, _ = make_train_step(estimator, ADAM)(state, batch)
    assert_same(params, before, 0)
    assert_same(carry, CELL.initial_carry((B,)), 0)
    assert state.params.cell.w_h.is_deleted() and not after.params.cell.w_h.is_deleted()
    make_train_step(estimator, ADAM)(rewind(estimator, after, carry, batch), batch)
    assert_same(carry, CELL.initial_carry((B,)), 0)  # rewind copies it too


def test_keys_are_consumed(params, batch):
    inner = full_bptt(LOSS)
    noisy = inner._replace(
        estimate=lambda p, m, b, key=None: inner.estimate(p, m, b)._replace(loss=jax.random.uniform(key, dtype=float))
    )
    state = init_state(noisy, ADAM, params, CELL.initial_carry((B,)), batch, jax.random.key(3))
    _, metrics = make_train_epoch(noisy, ADAM, CHUNK)(state, batch)
    assert len(set(metrics.loss.tolist())) == 3


def test_chunk_must_divide(params, batch):
    estimator = full_bptt(LOSS)
    with pytest.raises(ValueError, match=r"multiple of chunk; got T=24, chunk=5\. Pad the batch to T=25"):
        make_train_epoch(estimator, ADAM, 5)(start(estimator, ADAM, params, batch), batch)
    with pytest.raises(ValueError, match=r"chunk must be at least 1 step; got chunk=0"):
        make_train_epoch(estimator, ADAM, 0)


def test_watched_passes_gradients_exactly_and_counts():
    plain, seen = optax.clip_by_global_norm(1.0), watched(optax.clip_by_global_norm(1.0))
    grads = {"w": jnp.array([0.3, -0.4]), "b": jnp.array(0.1)}
    state = seen.init(grads)
    assert isinstance(state, WatchedState) and not bool(state.clipped)
    for scale, clipped, count in ((1.0, False, 0), (50.0, True, 1), (2.5, True, 2), (0.1, False, 2)):
        scaled = jax.tree.map(lambda g, s=scale: s * g, grads)
        new, state = seen.update(scaled, state)
        assert_same(new, plain.update(scaled, plain.init(grads))[0], 0)
        assert (bool(state.clipped), int(state.clip_count)) == (clipped, count)


def test_the_norm_of_a_huge_gradient_is_finite():
    """Four float32 entries of 2e19: their squares overflow, their norm does not."""

    def huge(params, carry, batch):
        return jnp.sum(params * jnp.float32(2e19)), carry

    estimator, optimizer = full_bptt(huge), optax.sgd(0.0)
    batch = Batch(jnp.zeros((1, 1), jnp.float32), jnp.zeros((1, 1)))
    state = init_state(estimator, optimizer, jnp.ones(4, jnp.float32), (), batch)
    _, metrics = make_train_step(estimator, optimizer)(state, batch)
    np.testing.assert_allclose(metrics.grad_norm, 4e19, rtol=1e-6)
    assert not metrics.non_finite


@pytest.mark.parametrize(
    ("loss", "entry", "says"), [(1.0, 2.0, False), (jnp.nan, 2.0, True), (1.0, jnp.inf, True), (1.0, -jnp.nan, True)]
)
def test_non_finite_looks_at_loss_and_gradient(loss, entry, says):
    def estimate(params, memory, batch, key=None):
        return Gradient(jnp.asarray(loss), {"w": jnp.array([1.0, entry])}, memory, ())

    given = Estimator(lambda params, carry, batch: carry, estimate)
    batch = Batch(jnp.zeros((2, 1)), jnp.zeros((2, 1)))
    state = init_state(given, optax.sgd(0.1), {"w": jnp.zeros(2)}, jnp.zeros(()), batch)
    assert bool(make_train_step(given, optax.sgd(0.1))(state, batch)[1].non_finite) is says
