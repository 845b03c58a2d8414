"""Policies for numbers that went wrong: skip, shrink, or stop and name the place; nothing is raised inside jit."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import LSTM, DiagonalLinear, Elman, GRUResetBefore
from tbptt.clipping import (
    StopState,
    clip_by_global_norm,
    guarded,
    leaves_named,
    raise_if_non_finite,
    shrink_non_finite,
    skip_non_finite,
    stop_at_non_finite,
    watched,
)
from tbptt.diagnostics import monitored, saturation_probe
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.objectives import init_params, sequence_loss, squared_error
from tbptt.training import init_state, make_train_epoch, make_train_step, rewind
from tbptt.types import Batch

CELL, READOUT = LSTM(2, 3), nn.Dense(1, param_dtype=jnp.float64)
PARAMS = init_params(jax.random.key(0), CELL, READOUT)
LEAVES = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(PARAMS)]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
ADAM = optax.adam(1e-2, eps=1e-3)  # the default eps, 1e-8, is 0 in float16, and a zero gradient then 0 / 0
VALUES = [(1e30, 1), (1e-30, 1), (0.0, 1), (np.inf, 1), (-np.inf, 1), (np.nan, 1), (2e19, 4), (300.0, 4)]


def with_value(tree, leaf, value, entries=1):
    leaves, structure = jax.tree.flatten(tree)
    flat = leaves[leaf].reshape(-1).at[:entries].set(value)
    return jax.tree.unflatten(structure, [*leaves[:leaf], flat.reshape(leaves[leaf].shape), *leaves[leaf + 1 :]])


def cast(dtype):
    return jax.tree.map(lambda p: (p + 0.1).astype(dtype), PARAMS)


def assert_equal(got, want):
    def same(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))

    jax.tree.map(same, got, want)


def finite(tree):
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def jitted(optimizer):
    @jax.jit
    def step(params, state, g):
        updates, state = optimizer.update(g, state, params)
        return optax.apply_updates(params, updates), state

    return step


@each_dtype
def test_clip_then_skip_at_every_value_in_every_leaf(dtype):
    optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(ADAM))
    step, params = jitted(optimizer), cast(dtype)
    state = optimizer.init(params)
    small, skips, row = jax.tree.map(lambda p: p / 100, params), 0, 0
    for leaf in range(len(LEAVES)):
        for n, (value, entries) in enumerate(VALUES, start=leaf * len(VALUES) + 1):
            g = with_value(small, leaf, value, entries)
            before, inner = params, state[1].inner
            params, state = step(params, state, g)
            bad = not finite(g)
            skips, row = skips + bad, (row + 1) * bad
            counts = [state[1].skipped, state[1].skipped_in_a_row, state[1].skip_count, state[0].non_finite_count]
            assert list(map(int, counts)) == [bad, row, skips, skips] and int(state[0].update_count) == n
            assert bool(state[0].clipped) == (not bad and value > 1)
            if bad:
                assert_equal((params, state[1].inner), (before, inner))
            else:
                assert int(state[1].inner[0].count) == n - skips
                assert any(np.any(np.asarray(a != b)) for a, b in zip(*map(jax.tree.leaves, (params, before)), strict=True))
            assert finite(params)
    assert skips == len(LEAVES) * (5 if dtype == jnp.float16 else 3)


def test_skipping_is_as_if_the_bad_gradients_had_never_come():
    g, plain = cast(jnp.float32), optax.adamw(1e-2)
    optimizer = skip_non_finite(plain)
    steps = jitted(optimizer), jitted(plain)
    ours, theirs = (g, optimizer.init(g)), (g, plain.init(g))
    for value in (0.3, np.nan, np.inf, 0.1, np.nan, -0.2):
        ours = steps[0](*ours, with_value(g, 2, value))
        theirs = steps[1](*theirs, with_value(g, 2, value)) if np.isfinite(value) else theirs
    assert_equal((ours[0], ours[1].inner), theirs)
    assert (int(ours[1].skip_count), int(ours[1].skipped_in_a_row), bool(ours[1].skipped)) == (3, 0, False)


def test_what_apply_if_finite_lets_through():
    """Why there is one of our own; should optax be repaired, this test says so."""
    p, nan = jnp.ones(2, jnp.float32), jnp.full(2, jnp.nan, jnp.float32)
    optimizer = optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=2)
    ours = skip_non_finite(optax.sgd(1.0))
    state, our_state, finites = optimizer.init(p), ours.init(p), []
    for _ in range(4):
        updates, state = optimizer.update(nan, state, p)
        our_updates, our_state = ours.update(nan, our_state, p)
        finites.append((finite(updates), finite(our_updates)))
    assert finites == [(True, True), (True, True), (False, True), (False, True)]
    assert int(our_state.skipped_in_a_row) == 4

    half = p.astype(jnp.bfloat16)
    optimizer, ours = (wrap(optax.adam(1e-3)) for wrap in (lambda o: optax.apply_if_finite(o, 2), skip_non_finite))
    with pytest.raises(TypeError, match="cond"):
        optimizer.update(half, optimizer.init(p), p)
    assert ours.update(half, ours.init(p), p)[0].dtype == jnp.float32

    huge = jnp.full(2, 1e30, jnp.float32)  # finite; Adam's second moment is not, and the parameters freeze for ever
    _, state = optimizer.update(huge, optimizer.init(p), p)
    assert bool(state.last_finite) and np.all(np.isinf(state.inner_state[0].nu))
    assert not np.any(optimizer.update(p, state, p)[0])
    updates, state = ours.update(huge, ours.init(p), p)
    assert not np.any(updates) and bool(state.skipped) and finite(state.inner)
    assert np.all(ours.update(p, state, p)[0] < 0)


def test_skip_an_update_that_overflows_and_states_of_any_kind():
    p = jnp.ones(2, jnp.float32)
    ours = skip_non_finite(optax.sgd(1e20))
    updates, state = ours.update(p * 1e30, ours.init(p), p)
    assert not np.any(updates) and bool(state.skipped)
    # infinity that was in the state from the start (as reduce_on_plateau's best value) is no harm; keys are no numbers
    still = optax.GradientTransformation(lambda p: jnp.array(jnp.inf), lambda g, state, p=None: (g, state))
    noise = optax.add_noise(0.1, 0.5, key=jax.random.key(1))
    ours = skip_non_finite(optax.chain(still, noise, optax.contrib.reduce_on_plateau()))
    updates, state = ours.update(p, ours.init(p), p, value=jnp.array(1.0))
    assert np.any(updates) and not bool(state.skipped)
    updates, state = ours.update(p * jnp.nan, state, p, value=jnp.array(1.0))
    assert not np.any(updates) and bool(state.skipped)


@each_dtype
def test_stop_names_every_leaf_and_the_update(dtype):
    params, optimizer = cast(dtype), optax.chain(clip_by_global_norm(1.0), stop_at_non_finite(ADAM))
    step, g = jitted(optimizer), jax.tree.map(lambda p: p / 100, params)
    for leaf, name in enumerate(LEAVES):
        for value in (np.nan, np.inf):
            now, state = step(params, optimizer.init(params), g)
            raise_if_non_finite(state, now)
            assert (int(state[1].seen), int(state[1].bad_update), int(state[1].first_bad_leaf)) == (1, -1, -1)
            bad = with_value(with_value(g, len(LEAVES) - 1, value), leaf, value)
            later, stopped = now, state
            for again in (bad, g, with_value(g, 0, np.nan)):  # stays stopped, and remembers the first
                later, stopped = step(later, stopped, again)
                assert_equal((later, stopped[1].inner), (now, state[1].inner))
                got = [stopped[1].seen, stopped[1].bad_update, stopped[1].first_bad_leaf, stopped[1].bad_stage]
                assert list(map(int, got)) == [1, 1, leaf, 0]
            with pytest.raises(FloatingPointError) as caught:
                raise_if_non_finite(stopped, later)
            assert f"the gradient of {name} is not finite at update 1 (counted from 0)" in str(caught.value)
    assert LEAVES[1] == ".cell.w_h"


def test_stop_names_the_stage_and_needs_a_stop():
    p = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float32)}
    huge = p | {"b": 1e30 * p["b"]}
    for optimizer, message in (
        (optax.sgd(1e20), r"the update of \['b'\] \(its gradient was finite\) is not finite at update 0"),
        (optax.adam(1e-3), "the optimizer's state is not finite at update 0"),
        (optax.sgd(1.0), None),
    ):
        wrapped = stop_at_non_finite(optimizer)
        updates, state = wrapped.update(huge, wrapped.init(p), p)
        if message is None:
            raise_if_non_finite(state, p)
            continue
        assert not np.any(updates["a"])
        with pytest.raises(FloatingPointError, match=message):
            raise_if_non_finite((state,), p)
    # a transformation inside that spreads the NaN: the gradient's leaf is named, not the spread
    wrapped = stop_at_non_finite(optax.chain(watched(optax.clip_by_global_norm(1.0)), optax.sgd(1.0)))
    _, state = wrapped.update(with_value(p, 1, np.nan), wrapped.init(p), p)
    with pytest.raises(FloatingPointError, match=r"the gradient of \['b'\]"):
        raise_if_non_finite(state, p)
    with pytest.raises(ValueError, match="must be wrapped in stop_at_non_finite"):
        raise_if_non_finite(optax.adam(1.0).init(p), p)


def test_stop_within_a_compiled_epoch():
    batch = Batch(jax.random.normal(jax.random.key(1), (12, 2, 2)), jnp.ones((12, 2, 1)))
    bad = batch._replace(targets=batch.targets.at[5].set(jnp.nan))  # in the second of three chunks
    estimator = full_bptt(sequence_loss(CELL, READOUT, squared_error))
    optimizer = optax.chain(clip_by_global_norm(1e-2), stop_at_non_finite(ADAM))
    epoch = make_train_epoch(estimator, optimizer, 4)

    def run(batch):
        return epoch(init_state(estimator, optimizer, PARAMS, CELL.initial_carry((2,)), batch), batch)

    first, _ = run(jax.tree.map(lambda leaf: leaf[:4], batch))
    state, metrics = run(bad)
    assert metrics.non_finite.tolist() == [False, True, False] and metrics.clipped.tolist() == [True, False, True]
    assert_equal((state.params, state.opt_state[1].inner), (first.params, first.opt_state[1].inner))
    assert isinstance(state.opt_state[1], StopState)
    with pytest.raises(FloatingPointError, match=r"the gradient of \.cell\.w_x is not finite at update 1 "):
        raise_if_non_finite(state.opt_state, state.params)
    raise_if_non_finite(first.opt_state, first.params)


@each_dtype
def test_shrink_at_every_value_in_every_leaf(dtype):
    params, shrink = cast(dtype), shrink_non_finite()
    update, state, replaced = jax.jit(shrink.update), shrink.init(params), 0
    pascanu = jax.tree.map(jnp.zeros_like, params)
    pascanu = pascanu._replace(cell=pascanu.cell._replace(w_h=(0.02 * params.cell.w_h).astype(dtype)))
    for leaf in range(len(LEAVES)):
        for value, entries in VALUES:
            g = with_value(params, leaf, value, entries)
            new, state = update(g, state, params)
            should = not finite(g) or value > 1e10
            replaced += should
            assert (bool(state.shrunk), int(state.shrink_count)) == (should, replaced)
            assert_equal(new, pascanu if should else g)
    assert replaced == 5 * len(LEAVES)


def test_shrink_shrinks_the_recurrence_and_nothing_else():
    params = cast(jnp.float32)
    optimizer = optax.chain(shrink_non_finite(0.1, jnp.inf), clip_by_global_norm(100.0), optax.sgd(0.5))
    new, _ = jitted(optimizer)(params, optimizer.init(params), with_value(params, 0, np.inf))
    np.testing.assert_allclose(new.cell.w_h, 0.95 * params.cell.w_h, rtol=1e-6)
    assert_equal(new._replace(cell=new.cell._replace(w_h=params.cell.w_h)), params)
    new, state = jitted(optimizer)(params, optimizer.init(params), with_value(params, 0, 3e38))
    assert not bool(state[0].shrunk)  # max_norm = inf: only what is not finite
    # parameters that are NaN themselves cannot be mended, and stay visible
    broken = with_value(params, 1, np.nan)
    assert np.isnan(jitted(optimizer)(broken, optimizer.init(broken), broken)[0].cell.w_h).any()


def test_leaves_are_chosen_by_name():
    def chosen(params, mask):
        pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(mask(params)), strict=True)
        return {jax.tree_util.keystr(path) for (path, _), yes in pairs if yes}

    default = inspect.signature(shrink_non_finite).parameters["mask"].default
    drawn = [cell.init(jax.random.key(0)) for cell in (Elman(1, 2), GRUResetBefore(1, 2), DiagonalLinear(1, 2))]
    assert [chosen(params, default) for params in drawn] == [{".w_h"}, {".w_h", ".w_n"}, {".a"}]
    assert chosen({"l": {"kernel": jnp.ones(1)}, "kernel": (jnp.ones(1),)}, leaves_named("kernel")) == {"['l']['kernel']"}
    with pytest.raises(ValueError, match=r"chooses none of the leaves \[\"\['w'\]\"\]; pass mask=leaves_named"):
        shrink_non_finite().init({"w": jnp.ones(1)})
    shrink = shrink_non_finite(mask=leaves_named("w"))
    with pytest.raises(ValueError, match="needs the parameters"):
        shrink.update({"w": jnp.ones(1)}, shrink.init({"w": jnp.ones(1)}))
    for wrong in ((0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="fraction and max_norm must be positive"):
            shrink_non_finite(*wrong)


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


def test_adam_in_float16_needs_an_eps_that_float16_has():
    params, g = jnp.ones(2, jnp.float16), jnp.array([0.0, 0.5], jnp.float16)
    for eps, skips in ((1e-8, 3), (1e-4, 0)):
        optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3, eps=eps)))
        step, new, state = jitted(optimizer), params, optimizer.init(params)
        for _ in range(3):
            new, state = step(new, state, g)
        assert int(state[1].skip_count) == skips and bool(new[1] < 1) == (skips == 0) and new[0] == 1
    wide, optimizer = params.astype(jnp.float32), skip_non_finite(optax.adam(1e-3))  # float16 gradients are no harm
    new, state = jitted(optimizer)(wide, optimizer.init(wide), g)
    assert int(state.skip_count) == 0 and new[1] < 1
