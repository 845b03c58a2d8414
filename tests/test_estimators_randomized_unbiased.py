"""Random truncation: unbiased by enumeration and by draws, biased where it says so, and honest about its scatter."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.estimators import randomized
from tbptt.estimators.random_windows import draw_cuts
from tbptt.estimators.randomized import draw_factors
from tbptt.estimators.schedules import AwdLengths, ConstantRate, HeavyTail, LogUniformLengths
from tbptt.estimators.seams import seam_gradient
from tbptt.windows import cut
from tests import oracle
from tests.test_estimators import CELLS, B, T, make, own_loss, run
from tests.test_influence_balancing import N as STATES
from tests.test_influence_balancing import closed_form, linear_loss

SCHEDULES = {"constant": ConstantRate(4.0), "heavy": HeavyTail(4.0, alpha=3.0)}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
DRAWS = 20_000


def flat(grads):
    return jax.flatten_util.ravel_pytree(grads)[0]


def outcomes(schedule, seams, k1):
    """Every way to cut, with its probability and its factors, from the definition."""
    for cuts in itertools.product((False, True), repeat=seams):
        p, since, factors = 1.0, k1, []
        for is_cut in cuts:
            c = float(schedule.probability(since, k1))
            p *= c if is_cut else 1 - c
            factors.append(0.0 if is_cut else 1 / (1 - c))
            since = k1 if is_cut else since + k1
        yield p, factors


def all_gradients(loss_fn, params, carry, batch, factors, k1):
    """One flat gradient for each row of factors: `[rows, P]`."""

    def one(row):
        return flat(seam_gradient(loss_fn, params, carry, cut(batch, k1), row[None]).grads)

    return jax.jit(jax.vmap(one))(jnp.asarray(factors, float))


def by_keys(estimator, params, carry, batch, n, seed=0):
    """n independent estimates, flat `[n, P]`."""
    one = lambda key: flat(estimator.estimate(params, carry, batch, key).grads)  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), n)))


def standard_errors(draws, want):
    """How many standard errors the mean of draws `[n, P]` is off, in every coordinate."""
    error = np.std(draws, axis=0, ddof=1) / math.sqrt(len(draws))
    off = np.abs(np.mean(draws, axis=0) - np.asarray(want))
    tiny = 1e-12 * np.abs(want) + 1e-14  # coordinates that do not depend on the cuts at all
    return np.where(off <= tiny, 0, off / np.maximum(error, 1e-300))


@pytest.mark.parametrize(
    "k1, extra, schedule", [(1, "all", "heavy"), (2, "plain", "heavy"), (1, "plain", "constant"), (3, "all", "constant")]
)
def test_the_mean_over_every_possible_cutting_is_full_bptt(k1, extra, schedule):
    schedule = SCHEDULES[schedule]
    loss_fn, params, carry, batch = make(CELLS["lstm"], extra, T=8 if k1 == 1 else T)
    seams = len(batch.inputs) // k1 - 1
    p, factors = (np.array(column) for column in zip(*outcomes(schedule, seams, k1), strict=True))
    assert p.sum() == pytest.approx(1, abs=1e-12) and (p > 0).all()
    grads = all_gradients(loss_fn, params, carry, batch, factors, k1)
    want = flat(run(tbptt.full_bptt(loss_fn), params, carry, batch).grads)
    np.testing.assert_allclose(p @ grads, want, rtol=1e-10, atol=1e-13)
    biased = all_gradients(loss_fn, params, carry, batch, factors > 0, k1)
    assert np.abs(p @ biased - want).max() > 1e-2 * np.abs(want).max()  # without 1 / (1 - c) it is not


@each_schedule
@pytest.mark.parametrize("k1", [1, 3])
def test_cuts_are_drawn_with_the_probabilities_of_the_definition(k1, schedule):
    seams = 4
    keys = jax.random.split(jax.random.key(3), DRAWS)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: draw_factors(schedule, key, seams, k1)))(keys))
    seen = 0
    for p, factors in outcomes(schedule, seams, k1):
        number = np.isclose(drawn, factors, rtol=1e-12).all(axis=1).sum()
        seen += number
        assert abs(number - DRAWS * p) < 4.5 * math.sqrt(DRAWS * p * (1 - p)) + 1
    assert seen == DRAWS  # nothing else was drawn


@pytest.mark.parametrize(
    "name, extra, schedule",
    [
        ("elman", "plain", "constant"),
        ("gru", "weights", "heavy"),
        ("lstm", "all", "constant"),
        ("linear", "resets", "heavy"),
    ],
)
def test_the_mean_of_many_draws_is_full_bptt_and_fails_without_the_factors(name, extra, schedule, monkeypatch):
    loss_fn, params, carry, batch = make(CELLS[name], extra)
    k1, schedule = 2, SCHEDULES[schedule]
    want = flat(run(tbptt.full_bptt(loss_fn), params, carry, batch).grads)
    draws = by_keys(tbptt.randomized_bptt(loss_fn, k1, schedule), params, carry, batch, DRAWS)
    assert standard_errors(draws, want).max() < 4
    ones = lambda *args: (draw_factors(*args) > 0).astype(float)  # noqa: E731
    monkeypatch.setattr(randomized, "draw_factors", ones)
    biased = by_keys(tbptt.randomized_bptt(loss_fn, k1, schedule), params, carry, batch, DRAWS)
    assert standard_errors(biased, want).max() > 10


def test_exact_with_a_users_own_loss_function():
    """Her carry counts in integers, which have no cotangent."""
    batch = make(CELLS["elman"])[-1]
    params, carry = {"w": jnp.array(0.9)}, {"s": jnp.full((B,), 0.2), "n": jnp.zeros((), jnp.int32)}
    schedule, k1 = SCHEDULES["heavy"], 2
    p, factors = (np.array(column) for column in zip(*outcomes(schedule, T // k1 - 1, k1), strict=True))
    grads = all_gradients(own_loss, params, carry, batch, factors, k1)
    full = run(tbptt.full_bptt(own_loss), params, carry, batch)
    np.testing.assert_allclose(p @ grads, flat(full.grads), rtol=1e-11)
    got = jax.jit(tbptt.randomized_bptt(own_loss, k1, schedule).estimate)(params, carry, batch, jax.random.key(0))
    chex.assert_trees_all_close((got.loss, got.memory), (full.loss, full.memory), rtol=1e-12)
    assert got.memory["n"] == T


def test_the_reported_variance_is_that_of_the_estimate():
    """Exactly the draws' scatter; and on average the true variance, known by enumeration."""
    loss_fn, params, carry, batch = make(CELLS["elman"], "all")
    schedule, k1, draws, n = SCHEDULES["constant"], 3, 4, 4000
    rows = np.array([f for _, f in outcomes(schedule, 3, k1)][2:6])
    estimate = jax.jit(functools.partial(seam_gradient, loss_fn))(params, carry, cut(batch, k1), jnp.asarray(rows))
    each = np.asarray(all_gradients(loss_fn, params, carry, batch, rows, k1))
    np.testing.assert_allclose(flat(estimate.grads), each.mean(axis=0), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(estimate.info.variance, np.trace(np.cov(each.T)) / len(rows), rtol=1e-10)

    p, factors = (np.array(column) for column in zip(*outcomes(schedule, 3, k1), strict=True))
    grads = np.asarray(all_gradients(loss_fn, params, carry, batch, factors, k1))
    true = p @ np.sum((grads - p @ grads) ** 2, axis=1) / draws
    estimator = tbptt.randomized_bptt(loss_fn, k1, schedule, draws=draws)
    run_one = lambda key: estimator.estimate(params, carry, batch, key)  # noqa: E731
    out = jax.jit(jax.vmap(run_one))(jax.random.split(jax.random.key(5), n))
    reported = np.asarray(out.info.variance)
    assert abs(reported.mean() - true) < 4 * reported.std() / math.sqrt(n)
    stacked = np.concatenate([leaf.reshape(n, -1) for leaf in jax.tree.leaves(out.grads)], axis=1)
    assert np.sum(stacked.var(axis=0, ddof=1)) == pytest.approx(true, rel=0.15)
    single = jax.eval_shape(tbptt.randomized_bptt(loss_fn, k1, schedule).estimate, params, carry, batch, jax.random.key(0))
    assert single.info.variance is None  # one draw has no scatter


def test_influence_balancing_in_closed_form():
    """Full BPTT's derivative is the mean of D_1 .. D_T, negative; random windows see only D_1 .. D_length, positive."""
    steps, k1 = 400, 10
    D = closed_form(steps)
    batch = tbptt.Batch(jnp.zeros((steps, 1)), jnp.zeros((steps, 1)))
    params, carry = {"theta": jnp.array(0.5)}, jnp.ones(STATES)
    assert D.mean() < -4
    for schedule in (ConstantRate(200.0), HeavyTail(100.0)):
        draws = by_keys(tbptt.randomized_bptt(linear_loss, k1, schedule), params, carry, batch, DRAWS)
        assert standard_errors(draws, [D.mean()]).max() < 4
    for schedule in (AwdLengths(30), LogUniformLengths(5, 80)):
        windows = tbptt.random_window_bptt(linear_loss, k1, schedule)
        draws = by_keys(windows, params, carry, batch, 2000)
        assert standard_errors(draws, [D.mean()]).max() > 50 and draws.mean() > 0  # the wrong sign
        estimate = jax.jit(windows.estimate)
        for seed in range(5):
            key = jax.random.key(seed)
            cuts = np.asarray(draw_cuts(schedule, jax.random.split(key, 1)[0], steps // k1 - 1, k1))
            edges = k1 * np.concatenate([[0], 1 + np.flatnonzero(cuts == 0), [steps // k1]])
            want = sum(D[: b - a].sum() for a, b in itertools.pairwise(edges)) / steps
            got = estimate(params, carry, batch, key)
            assert float(got.grads["theta"]) == pytest.approx(want, abs=1e-9)
            assert got.info.longest == np.diff(edges).max() and got.info.largest_product == 1


def test_a_stream_in_pieces_is_unbiased_for_the_pieces():
    """Each call's reference is full BPTT of the same call: the carry that enters it is constant."""
    loss_fn, params, carry, batch = make(CELLS["elman"], "all")
    estimator, full = tbptt.randomized_bptt(loss_fn, 2, SCHEDULES["heavy"]), tbptt.full_bptt(loss_fn)
    memory = estimator.init(params, carry, jax.eval_shape(lambda: batch))
    for start in (0, 6):
        piece = oracle.part(batch, start, start + 6)
        want = run(full, params, memory, piece)
        draws = by_keys(estimator, params, memory, piece, 5000)
        assert standard_errors(draws, flat(want.grads)).max() < 4
        memory = jax.jit(estimator.estimate)(params, memory, piece, jax.random.key(0)).memory
        chex.assert_trees_all_close(memory, want.memory, rtol=1e-12)
