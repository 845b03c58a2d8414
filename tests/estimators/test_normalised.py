"""Division by the weights, by the steps, or by a constant: every estimator, streams, MultiSteps."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tbptt.estimators import ConstantRate, normalised
from tests.support import oracle
from tests.support.problems import assert_same
from tests.support.sequences import sequence_params, zero_carry

T, B, D, H, K = 12, 3, 2, 3, 3
CELL, READOUT = tbptt.Elman(D, H), nn.Dense(1, param_dtype=float)
LOSS_FN = tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error)
# One of each kind of sum: over windows, a memory of steps, draws, single steps.
MAKE = {
    "full": tbptt.full_bptt,
    "disjoint": lambda loss: tbptt.truncated_bptt(loss, K, K),
    "overlapping": lambda loss: tbptt.truncated_bptt(loss, K, 2 * K),
    "randomized": lambda loss: tbptt.randomized_bptt(loss, K, ConstantRate(6)),
    "snap": lambda loss: tbptt.snap(loss, 1),
    "uoro": tbptt.uoro,
}
WINDOWS = {"full": (T, T), "disjoint": (K, K), "overlapping": (K, 2 * K)}
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.random((T, B))
MASK = RANDOM.random((T, B)) < 0.7


@functools.cache
def problem():
    start = jax.tree.map(jnp.asarray, (sequence_params(CELL, READOUT), zero_carry(CELL, (B,))))
    draw = np.random.default_rng(1).normal
    batch = tbptt.Batch(draw(size=(T, B, D)), draw(size=(T, B, 1)), mask=MASK)
    return start, batch


def cancelling():
    """Return weights of both signs whose sum over the steps that exist is 0."""
    return WEIGHTS - np.sum(WEIGHTS * MASK) / np.sum(MASK)


KEY = jax.random.key(2)


@functools.cache
def compiled(name, by):
    (params, carry), _ = problem()
    estimator = normalised(MAKE[name], by)(LOSS_FN)

    estimate = jax.jit(lambda memory, batch: estimator.estimate(params, memory, batch, KEY))
    return jax.jit(lambda batch: estimator.init(params, carry, batch)), estimate


def estimate_of(name, by, batch):
    """Return the loss and the gradient of the first call of a stream."""
    init, estimate = compiled(name, by)
    return jax.device_get(estimate(init(batch), batch)[:2])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "disjoint" else pytest.mark.exhaustive)
        for name in MAKE
    ],
)
def test_signed_weights_that_cancel_are_divided_by_the_steps_or_a_constant(name):
    """The gradient is linear in the weights: with w = p - q it is (P g(p) - Q g(q)) / N."""
    (params, carry), batch = problem()
    by_weights, w = functools.partial(estimate_of, name, "weights"), cancelling()
    assert abs(np.sum(w * MASK)) < 1e-12
    assert np.isnan(by_weights(batch._replace(weights=w))[0])
    p, q = np.maximum(w, 0), np.maximum(-w, 0)
    total = jax.tree.map(
        lambda a, b: np.sum(p * MASK) * a - np.sum(q * MASK) * b,
        *(by_weights(batch._replace(weights=part)) for part in (p, q)),
    )
    for by, N in (("steps", np.sum(MASK)), (7.5, 7.5)):
        got = estimate_of(name, by, batch._replace(weights=w))
        assert_same(got, jax.tree.map(lambda a, N=N: a / N, total), 1e-11)
        if name in WINDOWS:
            signed = batch._replace(weights=w)
            loop = oracle.truncated(LOSS_FN, params, carry, signed, *WINDOWS[name], divisor=N)
            assert_same(tuple(got), loop, 1e-11)
    assert max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(got[1])) > 1e-2


def stream(by, chunks):
    """Return the gradients of successive calls at the same parameters."""
    (init, estimate), found = compiled("disjoint", by), []
    memory = init(chunks[0])
    for chunk in chunks:
        out = estimate(memory, chunk)
        memory = out.memory
        found.append(jax.device_get(out.grads))
    return found


def test_class_weights_count_online():
    """A chunk of one class: its weight is divided out by the weights, and kept by the others."""
    _, batch = problem()
    classes = [99.0, 1.0, 99.0, 1.0]
    masks = np.random.default_rng(2).random((4, T, B)) < 0.7
    plain = [batch._replace(mask=mask, weights=np.ones((T, B))) for mask in masks]
    weighted = [b._replace(weights=np.full((T, B), c)) for b, c in zip(plain, classes, strict=True)]
    want, counts = stream("weights", plain), [np.sum(chunk.mask) for chunk in plain]
    assert_same(stream("weights", weighted), want)
    by_class = [jax.tree.map(lambda g, c=c: c * g, g) for c, g in zip(classes, want, strict=True)]
    assert_same(stream("steps", weighted), by_class)
    sums = [jax.tree.map(lambda g, n=n: n * g, g) for n, g in zip(counts, by_class, strict=True)]
    assert_same(stream(7.5, weighted), jax.tree.map(lambda g: g / 7.5, sums))
    assert len(set(counts)) > 1


def test_a_batch_without_weights_is_divided_by_its_steps():
    (params, carry), batch = problem()
    divisors = ("weights", "steps", 7.5)
    estimators = [normalised(tbptt.full_bptt, by)(LOSS_FN) for by in divisors]
    found = jax.jit(lambda batch: [e.estimate(params, carry, batch)[:2] for e in estimators])(batch)
    want, by_steps, by_constant = jax.device_get(found)
    assert_same(by_steps, want, 1e-13)
    assert_same(by_constant, jax.tree.map(lambda a: a * np.sum(MASK) / 7.5, want), 1e-13)


def test_a_step_is_counted_by_the_shape_of_the_weights():
    """Inputs [T, B] of a loss function of one's own: without weights they look like [T] steps."""

    def loss_fn(params, carry, batch):
        return (params * batch.inputs * batch.weights).sum(), carry

    batch = tbptt.Batch(np.ones((T, B)), None, weights=np.full((T, B), -2.0))
    estimator = normalised(tbptt.full_bptt, "steps")(loss_fn)
    grads = jax.jit(lambda batch: estimator.estimate(np.ones(()), (), batch).grads)(batch)
    assert float(grads) == -2


def test_multi_steps_is_exact_with_a_constant():
    """Calls of different total weights are averaged to the mean over all steps."""
    (params, carry), batch = problem()
    weights = WEIGHTS * np.where(np.arange(T)[:, None] < 6, 4, 1)
    batch = batch._replace(weights=weights)
    chunks = [oracle.part(batch, a, a + 6) for a in (0, 6)]
    total, lr = np.sum(weights * MASK), 0.1
    want = oracle.truncated(LOSS_FN, params, carry, batch, 6, 6)[1]
    moved = {}
    for by in (total / len(chunks), "weights"):
        estimator = normalised(tbptt.full_bptt, by)(LOSS_FN)
        optimizer = optax.MultiSteps(optax.sgd(lr), len(chunks))
        init = functools.partial(tbptt.init_state, estimator, optimizer)
        state = jax.jit(init)(params, carry, chunks[0])
        step = tbptt.make_train_step(estimator, optimizer)
        for chunk in chunks:
            state, _ = step(state, chunk)
        moved[by] = jax.tree.map(lambda a, b: np.asarray(a - b) / lr, params, state.params)

    def largest_error(got):
        errors = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b), got, want)
        return max(jax.tree.leaves(errors))

    exact, inexact = map(largest_error, moved.values())
    assert exact < 1e-6 and inexact > 0.05  # optax adds up in float32


@pytest.mark.parametrize("by", ["weight", 0, -1.0, np.inf, np.nan, True, None])
def test_other_divisors_are_refused(by):
    with pytest.raises(ValueError, match='by must be "weights", "steps" or a positive number; got'):
        inspect.unwrap(normalised)(tbptt.full_bptt, by)
