"""Weights of any dtype, long sums in narrow dtypes, padding in stored steps, through estimators."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.windows import total_weight
from tests.support.sequences import sequence_params

T, B, D, H = 12, 3, 2, 4
CELL, READOUT = tbptt.Elman(D, H), nn.Dense(1, param_dtype=float)
LOSS_FN = tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error)
ESTIMATORS = {
    "full": tbptt.full_bptt(LOSS_FN),
    "disjoint": tbptt.truncated_bptt(LOSS_FN, 3, 3),
    "grouped": tbptt.truncated_bptt(LOSS_FN, 3, 3, group=2),
    "overlapping": tbptt.truncated_bptt(LOSS_FN, 3, 6),
    "randomized": tbptt.randomized_bptt(LOSS_FN, 3, tbptt.estimators.ConstantRate(6)),
    "rtrl": tbptt.rtrl(LOSS_FN),
    "uoro": tbptt.uoro(LOSS_FN),
}


@functools.cache
def problem():
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(jnp.asarray, sequence_params(CELL, READOUT))
    inputs, targets = draw(size=(T, B, D)), draw(size=(T, B, 1))
    return params, jax.tree.map(np.asarray, CELL.initial_carry((B,))), inputs, targets


WEIGHTS = np.random.default_rng(1).integers(0, 3, size=(T, B))


@functools.cache
def compiled(estimator):
    params, carry, *_ = problem()

    @jax.jit
    def run(batch):
        memory = estimator.init(params, carry, batch)
        return estimator.estimate(params, memory, batch, jax.random.key(3))

    return run


def gradient(estimator, batch):
    return jax.device_get(compiled(estimator)(batch))


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


ESSENTIAL = ("full",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ESSENTIAL else pytest.mark.exhaustive)
        for name in ("full", "overlapping", "randomized", "rtrl", "uoro")
    ],
)
def test_weights_of_any_dtype_give_the_gradient_of_float_weights(name):
    """The mean is divided by a sum of weights, and a division of integers would round to 0."""
    _, _, inputs, targets = problem()
    batch = tbptt.Batch(inputs, targets, weights=WEIGHTS.astype(float))
    want = gradient(ESTIMATORS[name], batch)
    assert norm(want.grads) > 1e-2
    dtypes = ("int32", "uint8", "float16") if name == "full" else ("int32",)
    for dtype in dtypes:
        got = gradient(ESTIMATORS[name], batch._replace(weights=WEIGHTS.astype(dtype)))
        for a, b in zip(jax.tree.leaves(got[:2]), jax.tree.leaves(want[:2]), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_boolean_weights_count_or_do_not():
    _, _, inputs, targets = problem()
    batch = tbptt.Batch(inputs, targets, weights=(WEIGHTS > 0).astype(float))
    want = gradient(ESTIMATORS["full"], batch)
    got = gradient(ESTIMATORS["full"], batch._replace(weights=WEIGHTS > 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got[:2], want[:2])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_many_narrow_weights_are_summed_in_float32(dtype):
    weights = jnp.ones((96_000, 1), dtype)
    batch = tbptt.Batch(jnp.zeros((96_000, 1, 1)), None, weights=weights)
    total = jax.jit(total_weight)(batch)
    assert total.dtype == jnp.float32 and float(total) == 96_000


def test_gradients_of_many_windows_are_summed_in_float32():
    """2,000 equal windows: a sum in bfloat16 stops growing at 256 times its smallest term."""

    def loss_fn(params, carry, batch):
        return jnp.sum(params * batch.inputs), carry

    params, n = np.asarray(0.5, jnp.bfloat16), 2000
    batch = tbptt.Batch(np.ones((n, 1, 1), jnp.bfloat16), None, weights=np.ones((n, 1)))
    for estimator in (
        tbptt.truncated_bptt(loss_fn, 1, 1),
        tbptt.truncated_bptt(loss_fn, 1, 2),
        tbptt.truncated_bptt(loss_fn, 1, 1, group=8),
    ):
        out = jax.jit(lambda p, b, e=estimator: e.estimate(p, e.init(p, (), b), b))(params, batch)
        assert out.grads.dtype == jnp.bfloat16
        np.testing.assert_allclose(float(out.grads), 1, rtol=0.01)
        np.testing.assert_allclose(float(out.loss), 0.5, rtol=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": np.ones((T,))},
        {"weights": np.ones((T, 1))},
        {"weights": np.ones((T, B, 1))},
        {"mask": np.ones((T,), bool)},
        {"mask": np.ones((T, B, 1), bool)},
        {"resets": np.ones((T,), bool)},
    ],
    ids=lambda change: f"{next(iter(change))}-{next(iter(change.values())).shape}",
)
def test_weights_of_another_shape_are_refused(change):
    """Broadcast against the losses they would count a step many times."""
    params, carry, inputs, targets = problem()
    name = next(iter(change))
    words = rf"batch\.{name} must be \[T, \*batch\] = \({T}, {B}\).*got shape"
    batch = tbptt.Batch(inputs, targets, **change)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(LOSS_FN, params, carry, batch)


@pytest.mark.parametrize("name", ["full", "overlapping"])
def test_nan_padding_sets_off_no_alarm(name):
    params, carry, inputs, targets = problem()
    mask = np.ones((T, B), bool)
    mask[9:11, 0] = False  # stored for the next call
    hole = ~mask[..., None]
    batch = tbptt.Batch(np.where(hole, np.nan, inputs), np.where(hole, np.nan, targets), mask=mask)
    estimator = ESTIMATORS[name]
    memory = estimator.init(params, carry, batch)
    with jax.debug_nans(True):
        out = jax.jit(lambda m, b: estimator.estimate(params, m, b))(memory, batch)
    assert np.isfinite(out.loss)


def test_a_batch_that_differs_from_the_stored_steps_is_refused():
    params, carry, inputs, targets = problem()
    estimator, batch = ESTIMATORS["overlapping"], tbptt.Batch(inputs, targets)
    memory = estimator.init(params, carry, batch)
    with pytest.raises(ValueError, match="same fields and structure .* or start again with rewind"):
        weighted = batch._replace(weights=np.ones((T, B)))
        jax.eval_shape(estimator.estimate, params, memory, weighted)
    with pytest.raises(ValueError, match=r"batch.inputs must be .* \(3, 2\) of the stored steps"):
        smaller = jax.tree.map(lambda a: a[:, :2], batch)
        jax.eval_shape(estimator.estimate, params, memory, smaller)


def test_a_loss_function_that_returns_the_carry_first_is_named():
    params, carry, inputs, targets = problem()

    def swapped(params, carry, batch):
        return LOSS_FN(params, carry, batch)[::-1]

    estimator = tbptt.full_bptt(swapped)
    with pytest.raises(TypeError, match=r"swapped must return \(loss_sum, carry\), in this order"):
        jax.eval_shape(estimator.estimate, params, carry, tbptt.Batch(inputs, targets))


def test_weights_that_cancel_give_no_number():
    """A mean over them is huge or has the wrong sign; NaN is reported, and can be skipped."""
    _, _, inputs, targets = problem()
    signed = np.where(np.arange(T * B).reshape(T, B) % 2, 1.0, -1.0)
    for weights, finite in ((signed, False), (-np.ones((T, B)), False), (signed + 0.01, True)):
        batch = tbptt.Batch(inputs, targets, weights=weights)
        out = gradient(ESTIMATORS["full"], batch)
        assert bool(np.isfinite(out.loss)) is finite
        assert bool(np.isfinite(norm(out.grads))) is finite
    nothing = gradient(ESTIMATORS["full"], batch._replace(weights=np.zeros((T, B))))
    assert float(nothing.loss) == 0 and norm(nothing.grads) == 0


def test_one_window_of_negative_weight_does_not_spoil_the_call():
    """The mean is over all steps of a call, and only their total weight must not cancel."""
    _, _, inputs, targets = problem()
    weights = np.ones((T, B))
    weights[3:6] = -0.5
    batch = tbptt.Batch(inputs, targets, weights=weights)
    full = gradient(ESTIMATORS["full"], batch)
    for name in ("disjoint", "grouped"):
        out = gradient(ESTIMATORS[name], batch)
        np.testing.assert_allclose(out.loss, full.loss, rtol=1e-12)
        assert np.isfinite(norm(out.grads))


def mean_over_chunks(chunks):
    """Return the mean loss, its gradient by chunks with a constant carry, and that of each."""
    params, entering, *_ = problem()
    sums, grad = [], jax.jit(jax.value_and_grad(LOSS_FN, has_aux=True))
    for chunk in chunks:
        (loss_sum, entering), grads = jax.device_get(grad(params, entering, chunk))
        sums.append((loss_sum, grads))
    totals = [np.sum(chunk.weights * chunk.mask) for chunk in chunks]
    each = [jax.tree.map(lambda g, w=w: g / w, s[1]) for s, w in zip(sums, totals, strict=True)]
    return jax.tree.map(lambda *a: sum(a) / sum(totals), *sums), each


@pytest.mark.parametrize("k2", [30, pytest.param(120, marks=pytest.mark.exhaustive)])
def test_windows_of_different_lengths_are_accumulated_exactly(k2):
    """Pad them to one length and pass them in one call: one division by the total weight."""
    lengths, k1, draw = (30, 22, 10), 30, np.random.default_rng(2)
    steps, n = sum(lengths), k1 * len(lengths)
    real = tbptt.Batch(
        draw.normal(size=(steps, B, D)),
        draw.normal(size=(steps, B, 1)),
        weights=draw.random((steps, B)) * np.linspace(0.2, 2, steps)[:, None],
        mask=draw.random((steps, B)) < 0.9,
    )
    at = np.concatenate([k1 * j + np.arange(length) for j, length in enumerate(lengths)])

    def padded(leaf):
        filler = np.full((n, *leaf.shape[1:]), False if leaf.dtype == bool else np.nan, leaf.dtype)
        filler[at] = leaf
        return filler

    got = gradient(tbptt.truncated_bptt(LOSS_FN, k1, k2), jax.tree.map(padded, real))
    edges = np.cumsum((0, *lengths)) if k2 == k1 else (0, steps)  # k2 = 120: one gradient
    chunks = [
        jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], real) for a, b in itertools.pairwise(edges)
    ]
    want, each = mean_over_chunks(chunks)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    jax.tree.map(close, tuple(got[:2]), want)
    if k2 == k1:  # as optax.MultiSteps does
        error = jax.tree.map(lambda w, *g: w - sum(g) / len(g), want[1], *each)
        error, whole = (
            np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))
            for tree in (error, want[1])
        )
        assert error > 0.05 * whole
