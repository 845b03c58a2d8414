"""Clipping: the same direction, the norm asked for, at any size of gradient; inside the recurrence too."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, Stack
from tbptt.clipping import ClippedCell, clip_by_global_norm, clip_cotangent, watched
from tbptt.diagnostics import gradient_by_lag
from tbptt.estimators import full_bptt
from tbptt.objectives import init_params, sequence_loss, squared_error
from tbptt.training import init_state, make_train_epoch
from tbptt.types import Batch, SplitCell
from tbptt.unroll import plain_unroll, unroll

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


# Inside the recurrence.

CELLS = {
    "elman": Elman(2, 4, gain=3.0),
    "lstm": LSTM(2, 4),
    "stack": Stack((GRU(2, 4), LSTM(4, 3))),
    "linear": Elman(2, 4, activation=jnp.positive, gain=1.5),
}
each_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
XS = jax.random.normal(jax.random.key(2), (12, 3, 2))


def slopes_of(loss):
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def loss_of(cell, step_weights=None, run=unroll):
    def loss(params, carry, xs):
        carry, ys = run(cell, params, carry, xs)
        weights = jnp.ones(len(xs)) if step_weights is None else step_weights
        return jnp.sum(weights[:, None, None] * jnp.sin(ys)) + 0.1 * sum(map(jnp.sum, jax.tree.leaves(carry)))

    return loss


@each_cell
def test_clipped_cell_is_the_cell_forward_and_at_infinity(cell):
    params, carry = cell.init(jax.random.key(3)), cell.initial_carry((3,))
    clipped, never = ClippedCell(cell, 1e-3), ClippedCell(cell, float("inf"))
    assert isinstance(clipped, SplitCell) and hash(clipped) == hash(ClippedCell(cell, 1e-3))
    ours, theirs = (jax.jit(run, static_argnums=0) for run in (unroll, plain_unroll))
    assert_equal(ours(clipped, params, carry, XS), theirs(cell, params, carry, XS))
    halves = clipped.recur(params, carry, clipped.inputs(params, XS[0]))
    assert_equal(halves, cell(params, carry, XS[0]))
    by_carry = jax.jit(jax.grad(lambda c: jnp.sum(clipped.recur(params, c, clipped.inputs(params, XS[0]))[1])))(carry)
    norms = np.sqrt(sum(np.sum(np.square(leaf), axis=-1) for leaf in jax.tree.leaves(by_carry)))
    np.testing.assert_allclose(norms, 1e-3, rtol=1e-12)  # clipped in halves too
    plain = slopes_of(loss_of(cell, run=plain_unroll))(params, carry, XS)
    assert_equal(slopes_of(loss_of(never))(params, carry, XS), plain)
    tight = slopes_of(loss_of(clipped))(params, carry, XS)
    assert np.max(np.abs(flat(tight) - flat(plain))) > 1e-3


@functools.cache
def pulled(cell):
    """One step, and its pullback as a compiled function: both for any numbers."""

    def pull(params, carry, x, by_carry, by_y):
        return jax.vjp(lambda p, c: cell(p, c, x), params, carry)[1]((by_carry, by_y))

    return jax.jit(cell), jax.jit(pull)


@pytest.mark.parametrize("max_norm", [0.3, 3.0])
@each_cell
def test_clipped_cell_is_a_reverse_loop_with_clipping(cell, max_norm):
    params, carry = cell.init(jax.random.key(3)), cell.initial_carry((3,))
    weights = jnp.linspace(-1, 1, len(XS))
    got = jax.jit(jax.grad(loss_of(ClippedCell(cell, max_norm), weights)))(params, carry, XS)

    (step, pull), steps, state = pulled(cell), [], carry
    for x, weight in zip(XS, weights, strict=True):
        entering, (state, y) = state, step(params, state, x)
        steps.append((entering, x, weight * jnp.cos(y)))
    total, clips = jax.tree.map(jnp.zeros_like, params), 0
    back = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), state)
    for entering, x, by_y in reversed(steps):
        by_params, by_carry = pull(params, entering, x, back, by_y)
        total = jax.tree.map(jnp.add, total, by_params)
        norms = np.sqrt(sum(np.sum(np.square(leaf), axis=-1) for leaf in jax.tree.leaves(by_carry)))  # [B]
        factor = np.minimum(1, max_norm / norms)
        clips += np.sum(factor < 1)
        back = jax.tree.map(lambda leaf, f=factor: leaf * f[:, None], by_carry)
    assert clips > 0 or max_norm == 3.0
    np.testing.assert_allclose(flat(got), flat(total), rtol=1e-10, atol=1e-12)


def test_gradient_by_lag_is_bounded_on_an_exploding_cell():
    cell = Elman(2, 4, activation=jnp.positive, gain=1.5)  # w_h is 1.5 times orthogonal: 1.5^k exactly
    params, carry, xs = cell.init(jax.random.key(3)), cell.initial_carry((3,)), jnp.zeros((400, 3, 2), jnp.float64)

    def lag(cell):
        last_loss = lambda y: jnp.sum(y[..., 0] * jnp.array([1.0, 1e-80, 1e300]))  # noqa: E731
        return jax.jit(lambda xs: gradient_by_lag(cell, params, carry, xs, last_loss))(xs)

    plain, bounded = lag(cell)[:, 0], lag(ClippedCell(cell, 10.0))
    np.testing.assert_allclose(plain, 1.5 ** np.arange(1, 401), rtol=1e-9)
    assert float(jnp.max(bounded)) <= 10 * (1 + 1e-12)
    # each batch element on its own; 1e300 would overflow a square, and 1e-80 is not clipped by its neighbours
    np.testing.assert_allclose(bounded[:, 0], np.minimum(plain, 10), rtol=1e-9)
    np.testing.assert_allclose(bounded[:, 2], 10, rtol=1e-9)
    np.testing.assert_allclose(bounded[:10, 1], 1e-80 * plain[:10], rtol=1e-9)


def test_clip_cotangent_of_any_tree():
    tree = {"h": jnp.ones((2, 3)), "c": jnp.ones((2, 2, 2)), "steps": jnp.arange(2)}
    out, pull = jax.vjp(lambda t: clip_cotangent(t, 1.0, 1), tree)
    assert_equal(out, tree)
    float0 = np.zeros(2, jax.dtypes.float0)
    d = {"h": jnp.full((2, 3), 2e200), "c": jnp.full((2, 2, 2), 2e200).at[1].set(jnp.nan), "steps": float0}
    (back,) = pull(d)
    norm = np.sqrt(7)
    np.testing.assert_allclose(back["h"][0], 1 / norm)
    np.testing.assert_allclose(back["c"][0], 1 / norm)
    assert_equal((back["h"][1], back["c"][1]), (d["h"][1], d["c"][1]))  # NaN: as it came
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda h: clip_cotangent(h, 1.0), (1.0,), (1.0,))


def test_clipped_cell_within_a_stack_and_without_batch():
    inner = ClippedCell(DiagonalLinear(2, 3), 0.1)
    stack = Stack((inner, ClippedCell(LSTM(3, 2), 0.1)))
    params = stack.init(jax.random.key(0))
    plain = Stack((inner.cell, LSTM(3, 2)))
    assert_equal(plain.init(jax.random.key(0)), params)
    slopes = jax.jit(jax.grad(loss_of_sum(stack)))
    for batch_shape in ((), (2, 3)):
        xs = jnp.ones((5, *batch_shape, 2))
        got = slopes(params, stack.initial_carry(batch_shape), xs)
        one = slopes(params, stack.initial_carry(), xs.reshape(5, -1, 2)[:, 0])
        copies = int(np.prod(batch_shape))
        np.testing.assert_allclose(flat(got), copies * flat(one), rtol=1e-12, atol=1e-14)  # every element clipped alone


def loss_of_sum(cell):
    return lambda params, carry, xs: jnp.sum(unroll(cell, params, carry, xs)[1])
