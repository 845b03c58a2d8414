"""Clipping by the global norm: direction, norm and statistics, for gradients of any size."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import ClippedCell, clip_cotangent
from tbptt.estimators import full_bptt
from tbptt.optim import clip_by_global_norm, with_clip_stats
from tbptt.training import init_state, make_train_epoch
from tbptt.types import Batch
from tests.support.bad_numbers import CELL, LEAVES, PARAMS, each_dtype, linear_loss

# (value, how many entries); 1e30 and 2e19 are inf in float16, whose own such case is 300
VALUES = [
    (1e30, 1),
    (1e-30, 1),
    (0.0, 1),
    (np.inf, 1),
    (-np.inf, 1),
    (np.nan, 1),
    (2e19, 4),
    (300.0, 4),
    (3.3e38, 4),
]
assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


def gradient(dtype, leaf, value, entries, fill):
    """Return `fill` times noise like the params, with `value` in the first entries of one leaf."""
    rng = np.random.default_rng(0)
    leaves = [fill * rng.normal(size=p.shape) for p in jax.tree.leaves(PARAMS)]
    leaves[leaf].reshape(-1)[:entries] = value
    with np.errstate(over="ignore"):
        return jax.tree.unflatten(jax.tree.structure(PARAMS), [a.astype(dtype) for a in leaves])


def flat(tree):
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(tree)]
    )


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


@functools.cache
def clipping(max_norm, dtype):
    """Return the initial state and the compiled update, for gradients of a dtype."""
    clip = clip_by_global_norm(max_norm)
    return jax.jit(clip.init)(jax.tree.map(lambda p: p.astype(dtype), PARAMS)), jax.jit(clip.update)


@each_dtype
@pytest.mark.parametrize("leaf", range(len(LEAVES)), ids=LEAVES)
def test_every_value_in_every_leaf(dtype, leaf):
    state, update = clipping(1.0, dtype)
    clips, bad = 0, 0
    cases = [(*value, fill) for value in VALUES for fill in (0.0, 1e-2)]
    for n, (value, entries, fill) in enumerate(cases, start=1):
        g = gradient(dtype, leaf, value, entries, fill)
        new, state = update(g, state)
        before, after = flat(g), flat(new)
        finite, norm = (
            np.all(np.isfinite(before)),
            np.linalg.norm(before),
        )  # float64: no overflow in these
        should = bool(finite and norm > 1)
        clips, bad = clips + should, bad + (not finite)
        assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, g)
        assert (
            bool(state.clipped),
            *map(int, (state.clip_count, state.update_count, state.non_finite_count)),
        ) == ((should, clips, n, bad))
        if should:
            np.testing.assert_allclose(
                after, before / norm, rtol=4 * eps(dtype), atol=float(jnp.finfo(dtype).tiny)
            )
            np.testing.assert_allclose(np.linalg.norm(after), 1, rtol=4 * eps(dtype))
        else:
            assert_equal(after, before)
            assert np.any(after) == np.any(before)
        largest = float(jnp.finfo(jnp.float32).max)
        np.testing.assert_allclose(
            float(state.last_norm), min(norm, largest) if finite else norm, rtol=1e-6
        )
        wanted = max(1 / norm, float(jnp.finfo(jnp.float32).tiny)) if should else 1
        np.testing.assert_allclose(float(state.scale), wanted, rtol=1e-6)
    assert (clips, bad) == ((2, 12) if dtype == jnp.float16 else (8, 6))


second = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    "max_norm, dtype",
    [
        (0.5, jnp.float32),
        *(second(1e-3, dtype) for dtype in (jnp.float64, jnp.float16)),
        second(20.0, jnp.bfloat16),
    ],
)
def test_same_direction_and_norm_max_norm(dtype, max_norm):

    @jax.jit
    def both(g):  # optax sums in its dtype
        ours = clip_by_global_norm(max_norm).update(g, clip_by_global_norm(max_norm).init(g))
        return *ours, optax.clip_by_global_norm(max_norm).update(g, optax.EmptyState())[0]

    for fill in (1e-4, 1.0, 30.0):
        g = gradient(dtype, 0, fill, 1, fill)
        new, state, theirs = both(g)
        before, after = flat(g), flat(new)
        norm = np.linalg.norm(before)
        assert bool(state.clipped) == (norm > max_norm)
        np.testing.assert_allclose(np.linalg.norm(after), min(norm, max_norm), rtol=4 * eps(dtype))
        np.testing.assert_allclose(
            after @ before / (np.linalg.norm(after) * norm), 1, rtol=4 * eps(dtype)
        )
        coarse = 16 if dtype in (jnp.float16, jnp.bfloat16) else 4
        np.testing.assert_allclose(
            after, flat(theirs), rtol=coarse * eps(dtype), atol=float(jnp.finfo(dtype).tiny)
        )


@pytest.mark.parametrize("dtype", [jnp.float32, second(jnp.bfloat16), second(jnp.float16)])
def test_clipping_twice_is_clipping_to_the_smaller(dtype):
    for size in (3.0, 1e4, 1e30):
        if size == 1e30 and dtype == jnp.float16:
            continue
        g = gradient(dtype, 1, size, 2, 1.0)
        for a, b in ((2.0, 0.5), (0.5, 2.0), (0.5, 0.5)):
            first, second, smaller = (clipping(max_norm, dtype) for max_norm in (a, b, min(a, b)))
            twice = second[1](first[1](g, first[0])[0], second[0])[0]
            both = smaller[1](g, smaller[0])[0]
            # float16 entries beside 1e4 have already lost bits to its subnormals
            tiny = float(jnp.finfo(dtype).smallest_subnormal) if dtype == jnp.float16 else 0
            np.testing.assert_allclose(flat(twice), flat(both), rtol=4 * eps(dtype), atol=4 * tiny)


def test_optax_makes_zeros_of_finite_gradients():
    """The reason for clip_by_global_norm; this test fails if optax changes."""

    def clipped(clip, g):
        return jax.jit(lambda g: clip.update(g, clip.init(g))[0])(g)

    theirs, ours = optax.clip_by_global_norm(1.0), clip_by_global_norm(1.0)
    for dtype, value in ((jnp.float32, 2e19), (jnp.float16, 300.0)):
        g = np.full(4, value, dtype)
        assert not np.any(clipped(theirs, g))
        np.testing.assert_allclose(clipped(ours, g), 0.5, rtol=eps(dtype))
    for bad in (np.inf, np.nan):
        spread = clipped(theirs, {"a": np.array(bad), "b": np.ones(2)})
        assert not np.any(np.asarray(spread["b"]) == 1)


def test_max_norm_must_be_positive():
    for factory in (
        clip_by_global_norm,
        functools.partial(ClippedCell, CELL),
        lambda m: clip_cotangent(1.0, m),
    ):
        for wrong in (0, -1.0, float("nan")):
            with pytest.raises(
                ValueError, match=r"max_norm must be a positive number \(inf: never clip\); got"
            ):
                factory(wrong)
    for wrong in (
        np.float32(-1),
        np.float64(0),
        np.asarray(-1),
        jnp.asarray(-1.0),
        jnp.bfloat16(-1),
        np.ones(2),
        jnp.nan,
    ):
        with pytest.raises(
            ValueError, match=r"max_norm must be a positive number \(inf: never clip\); got"
        ):
            clip_by_global_norm(wrong)
    for wrong in ("1", None, 1j, True):
        with pytest.raises(TypeError, match="max_norm must be a positive number"):
            inspect.unwrap(clip_by_global_norm)(wrong)
    with pytest.raises(TypeError):
        ClippedCell(CELL, np.ones(()))
    g, rights = {"w": np.array([3.0, 4.0])}, (2, np.float32(2), jnp.asarray(2.0), jnp.bfloat16(2))

    @jax.jit
    def clipped(g, traced):
        clips = [clip_by_global_norm(right) for right in (*rights, traced)]
        return [clip.update(g, clip.init(g))[0]["w"] for clip in clips]

    np.testing.assert_allclose(clipped(g, 2.0), 5 * [[1.2, 1.6]])


def test_the_train_step_reports_it():
    batch = Batch(np.random.default_rng(1).normal(size=(8, 2, 2)), np.ones((8, 2, 1)))
    estimator, seen = full_bptt(linear_loss), {}
    for name, clip in (
        ("ours", clip_by_global_norm(0.05)),
        ("optax", with_clip_stats(optax.clip_by_global_norm(0.05))),
    ):
        optimizer = optax.chain(clip, optax.sgd(0.5))
        state = jax.jit(lambda o=optimizer: init_state(estimator, o, PARAMS, (), batch))()
        seen[name] = make_train_epoch(estimator, optimizer, 4)(state, batch)
    (ours, our_metrics), (theirs, their_metrics) = seen.values()
    assert our_metrics.clipped.tolist() == their_metrics.clipped.tolist() == [True, True]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12), ours.params, theirs.params
    )
    np.testing.assert_allclose(ours.opt_state[0].last_norm, our_metrics.grad_norm[-1])


def test_with_clip_stats_reports_other_clippings_and_nan():
    p = {"w": np.array([[3.0, 0.3], [4.0, 0.4]]), "b": np.ones(2)}  # columns of norm 5 and 0.5
    small = jax.tree.map(lambda leaf: 1e-3 * leaf, p)
    big = jax.tree.map(np.copy, small)
    big["w"][:, 1] = 1.0  # one column, too large for its own norm
    bad = jax.tree.map(np.copy, small)
    bad["b"][0] = np.nan

    def run(transformation, *gradients):
        """Return (clipped, clip_count, new gradient) for each gradient."""
        seen = with_clip_stats(transformation)

        @jax.jit
        def both(g):
            new, state = seen.update(g, seen.init(p), p)
            return new, state, transformation.update(g, transformation.init(p), p)[0]

        found = []
        for g in gradients:
            new, state, plain = jax.tree.map(np.asarray, both(g))
            assert_equal(new, plain)
            found.append((bool(state.clipped), int(state.clip_count), new))
        return found

    found = {}
    for name, transformation in {
        "by column": optax.adaptive_grad_clip(0.01),
        "by block": optax.clip_by_block_rms(0.1),
        "by entry": optax.clip(0.1),
    }.items():
        found[name] = run(transformation, small, big, bad)
        assert found[name][0][:2] == (False, 0) and found[name][1][:2] == (True, 1)
    new = found["by column"][1][2]
    assert_equal((new["w"][:, 0], new["b"]), (small["w"][:, 0], small["b"]))
    np.testing.assert_allclose(np.linalg.norm(new["w"][:, 1]), 0.01 * 0.5)
    assert not found["by entry"][2][0]  # the NaN passed, nothing was changed
    assert not run(clip_by_global_norm(1e-9), bad)[0][0]
    assert [clipped for clipped, _, _ in run(optax.zero_nans(), bad, small)] == [True, False]
    assert run(optax.clip_by_global_norm(1.0), bad)[0][0]  # it spread to w
    sums, n = optax.per_example_global_norm_clip([jnp.array([[3.0, 4.0], [0.3, 0.4]])], 1.0)
    np.testing.assert_allclose(sums[0], [0.9, 1.2], rtol=1e-6)
    assert int(n) == 1
