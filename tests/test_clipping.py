"""Clipping: the same direction, the norm asked for, at any size of gradient."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import LSTM
from tbptt.clipping import ClippedCell, clip_by_global_norm, clip_cotangent, watched
from tbptt.estimators import full_bptt
from tbptt.objectives import init_params, sequence_loss, squared_error
from tbptt.training import init_state, make_train_epoch
from tbptt.types import Batch

CELL, READOUT = LSTM(2, 3), nn.Dense(1, param_dtype=jnp.float64)
PARAMS = init_params(jax.random.key(0), CELL, READOUT)
LEAVES = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(PARAMS)]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
# (value, how many entries); 1e30 and 2e19 are inf in float16, whose own such case is 300
VALUES = [(1e30, 1), (1e-30, 1), (0.0, 1), (np.inf, 1), (-np.inf, 1), (np.nan, 1), (2e19, 4), (300.0, 4), (3.3e38, 4)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


def gradient(dtype, leaf, value, entries, fill):
    """Like the params: `fill` times noise everywhere, but `value` in the first entries of one leaf."""
    rng = np.random.default_rng(0)
    leaves = [fill * rng.normal(size=p.shape) for p in jax.tree.leaves(PARAMS)]
    leaves[leaf].reshape(-1)[:entries] = value
    with np.errstate(over="ignore"):
        return jax.tree.unflatten(jax.tree.structure(PARAMS), [jnp.asarray(a, dtype) for a in leaves])


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(tree)])


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


@each_dtype
@pytest.mark.parametrize("leaf", range(len(LEAVES)), ids=LEAVES)
def test_every_value_in_every_leaf(dtype, leaf):
    clip = clip_by_global_norm(1.0)
    update, init = jax.jit(clip.update), clip.init(jax.tree.map(lambda p: p.astype(dtype), PARAMS))
    state, clips, bad = init, 0, 0
    cases = [(*value, fill) for value in VALUES for fill in (0.0, 1e-2)]
    for n, (value, entries, fill) in enumerate(cases, start=1):
        g = gradient(dtype, leaf, value, entries, fill)
        new, state = update(g, state)
        before, after = flat(g), flat(new)
        finite, norm = np.all(np.isfinite(before)), np.linalg.norm(before)  # float64: no overflow in these
        should = bool(finite and norm > 1)
        clips, bad = clips + should, bad + (not finite)
        assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, g)
        assert (bool(state.clipped), *map(int, (state.clip_count, state.update_count, state.non_finite_count))) == (
            (should, clips, n, bad)
        )
        if should:
            np.testing.assert_allclose(after, before / norm, rtol=4 * eps(dtype), atol=float(jnp.finfo(dtype).tiny))
            np.testing.assert_allclose(np.linalg.norm(after), 1, rtol=4 * eps(dtype))
        else:
            assert_equal(after, before)
            assert np.any(after) == np.any(before)
        largest = float(jnp.finfo(jnp.float32).max)
        np.testing.assert_allclose(float(state.last_norm), min(norm, largest) if finite else norm, rtol=1e-6)
        wanted = max(1 / norm, float(jnp.finfo(jnp.float32).tiny)) if should else 1
        np.testing.assert_allclose(float(state.scale), wanted, rtol=1e-6)
    assert (clips, bad) == ((2, 12) if dtype == jnp.float16 else (8, 6))


@pytest.mark.parametrize("dtype", [*DTYPES, jnp.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("g_max", [1e-3, 0.5, 1.0, 20.0])
def test_same_direction_and_norm_g_max(dtype, g_max):

    @jax.jit
    def both(g):  # optax sums in its dtype
        ours = clip_by_global_norm(g_max).update(g, clip_by_global_norm(g_max).init(g))
        return *ours, optax.clip_by_global_norm(g_max).update(g, optax.EmptyState())[0]

    for fill in (1e-4, 1.0, 30.0):
        g = gradient(dtype, 0, fill, 1, fill)
        new, state, theirs = both(g)
        before, after = flat(g), flat(new)
        norm = np.linalg.norm(before)
        assert bool(state.clipped) == (norm > g_max)
        np.testing.assert_allclose(np.linalg.norm(after), min(norm, g_max), rtol=4 * eps(dtype))
        np.testing.assert_allclose(after @ before / (np.linalg.norm(after) * norm), 1, rtol=4 * eps(dtype))
        coarse = 16 if dtype in (jnp.float16, jnp.bfloat16) else 4
        np.testing.assert_allclose(after, flat(theirs), rtol=coarse * eps(dtype), atol=float(jnp.finfo(dtype).tiny))


@each_dtype
def test_clipping_twice_is_clipping_to_the_smaller(dtype):
    for size in (3.0, 1e4, 1e30):
        if size == 1e30 and dtype == jnp.float16:
            continue
        g = gradient(dtype, 1, size, 2, 1.0)
        for a, b in ((2.0, 0.5), (0.5, 2.0), (0.5, 0.5)):
            state = clip_by_global_norm(a).init(g)
            once = clip_by_global_norm(a).update(g, state)[0]
            twice = clip_by_global_norm(b).update(once, state)[0]
            both = clip_by_global_norm(min(a, b)).update(g, state)[0]
            # float16 entries beside 1e4 have already lost bits to its subnormals
            tiny = float(jnp.finfo(dtype).smallest_subnormal) if dtype == jnp.float16 else 0
            np.testing.assert_allclose(flat(twice), flat(both), rtol=4 * eps(dtype), atol=4 * tiny)


def test_optax_makes_zeros_of_finite_gradients():
    """Why there is one of our own; should optax be repaired, this test says so."""
    for dtype, value in ((jnp.float32, 2e19), (jnp.float16, 300.0)):
        g = jnp.full(4, value, dtype)
        assert not np.any(optax.clip_by_global_norm(1.0).update(g, optax.EmptyState())[0])
        clip = clip_by_global_norm(1.0)
        np.testing.assert_allclose(clip.update(g, clip.init(g))[0], 0.5, rtol=eps(dtype))
    for bad in (jnp.inf, jnp.nan):
        spread = optax.clip_by_global_norm(1.0).update({"a": jnp.array(bad), "b": jnp.ones(2)}, optax.EmptyState())[0]
        assert not np.any(spread["b"] == 1)


def test_max_norm_must_be_positive():
    for factory in (clip_by_global_norm, functools.partial(ClippedCell, CELL), lambda m: clip_cotangent(1.0, m)):
        for wrong in (0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=r"max_norm must be a positive number \(inf: never clip\); got"):
                factory(wrong)
    for wrong in (np.float32(-1), np.float64(0), np.asarray(-1), jnp.asarray(-1.0), jnp.bfloat16(-1), np.ones(2), jnp.nan):
        with pytest.raises(ValueError, match=r"max_norm must be a positive number \(inf: never clip\); got"):
            clip_by_global_norm(wrong)
    for wrong in ("1", None, 1j, True):
        with pytest.raises(TypeError, match="max_norm must be a positive number"):
            inspect.unwrap(clip_by_global_norm)(wrong)
    with pytest.raises(TypeError):
        ClippedCell(CELL, np.ones(()))
    g = {"w": jnp.array([3.0, 4.0])}
    for right in (2, np.float32(2), jnp.asarray(2.0), jnp.bfloat16(2)):
        np.testing.assert_allclose(
            clip_by_global_norm(right).update(g, clip_by_global_norm(right).init(g))[0]["w"], [1.2, 1.6]
        )
    traced = jax.jit(lambda m: clip_by_global_norm(m).update(g, clip_by_global_norm(m).init(g))[0]["w"])
    np.testing.assert_allclose(traced(2.0), [1.2, 1.6])


def test_the_train_step_reports_it():
    batch = Batch(jax.random.normal(jax.random.key(1), (8, 2, 2)), jnp.ones((8, 2, 1)))
    estimator, seen = full_bptt(sequence_loss(CELL, READOUT, squared_error)), {}
    for name, clip in (("ours", clip_by_global_norm(0.05)), ("optax", watched(optax.clip_by_global_norm(0.05)))):
        optimizer = optax.chain(clip, optax.sgd(0.5))
        state = init_state(estimator, optimizer, PARAMS, CELL.initial_carry((2,)), batch)
        seen[name] = make_train_epoch(estimator, optimizer, 4)(state, batch)
    (ours, our_metrics), (theirs, their_metrics) = seen.values()
    assert our_metrics.clipped.tolist() == their_metrics.clipped.tolist() == [True, True]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), ours.params, theirs.params)
    np.testing.assert_allclose(ours.opt_state[0].last_norm, our_metrics.grad_norm[-1])


def test_watched_reports_other_clippings_and_nan():
    p = {"w": jnp.array([[3.0, 0.3], [4.0, 0.4]]), "b": jnp.ones(2)}  # columns of norm 5 and 0.5
    small = jax.tree.map(lambda leaf: 1e-3 * leaf, p)
    big = small | {"w": small["w"].at[:, 1].set(1.0)}  # one column, too large for its own norm

    def run(transformation, g):
        seen = watched(transformation)
        new, state = seen.update(g, seen.init(p), p)
        plain = transformation.update(g, transformation.init(p), p)[0]
        assert_equal(new, plain)
        return bool(state.clipped), int(state.clip_count), new

    for transformation in (optax.adaptive_grad_clip(0.01), optax.clip_by_block_rms(0.1), optax.clip(0.1)):
        assert run(transformation, small)[:2] == (False, 0) and run(transformation, big)[:2] == (True, 1)
    new = run(optax.adaptive_grad_clip(0.01), big)[2]
    assert_equal((new["w"][:, 0], new["b"]), (small["w"][:, 0], small["b"]))
    np.testing.assert_allclose(np.linalg.norm(new["w"][:, 1]), 0.01 * 0.5)
    bad = small | {"b": small["b"].at[0].set(jnp.nan)}
    assert not run(optax.clip(0.1), bad)[0]  # the NaN passed: nothing was changed
    assert not run(clip_by_global_norm(1e-9), bad)[0]
    assert run(optax.zero_nans(), bad)[0] and not run(optax.zero_nans(), small)[0]
    assert run(optax.clip_by_global_norm(1.0), bad)[0]  # it spread to w
    sums, n = optax.per_example_global_norm_clip([jnp.array([[3.0, 4.0], [0.3, 0.4]])], 1.0)
    np.testing.assert_allclose(sums[0], [0.9, 1.2], rtol=1e-6)
    assert int(n) == 1
