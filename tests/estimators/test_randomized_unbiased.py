"""Random truncation: its mean by enumeration and by draws, and its reported variance."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.estimators.randomized import estimator as randomized
from tbptt.estimators.randomized.estimator import (
    boundary_gradient,
    draw_factors,
    draw_window_factors,
)
from tbptt.estimators.randomized.schedules import (
    AwdLengths,
    ConstantRate,
    HeavyTail,
    LogUniformLengths,
)
from tbptt.windows import split_windows
from tests.experiments.test_influence_balancing import N as STATES
from tests.experiments.test_influence_balancing import closed_form, linear_loss
from tests.support import oracle
from tests.support.estimating import CELLS, T, make, own_problem, run

SCHEDULES = {"constant": ConstantRate(4.0), "heavy": HeavyTail(4.0, alpha=3.0)}
DRAWS = 20_000
exhaustive = pytest.mark.exhaustive


def flat(grads):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])


def flatten(grads):
    return jax.flatten_util.ravel_pytree(grads)[0]


def problem(name, extra, T=T):
    return own_problem(extra, T) if name == "own" else make(CELLS[name], extra, T=T)


def outcomes(schedule, boundaries, k1):
    """Yield every set of truncations, as (probability, factors), from the definition."""
    for truncations in itertools.product((False, True), repeat=boundaries):
        p, since, factors = 1.0, k1, []
        for is_truncated in truncations:
            c = float(schedule.probability(since, k1))
            p *= c if is_truncated else 1 - c
            factors.append(0.0 if is_truncated else 1 / (1 - c))
            since = k1 if is_truncated else since + k1
        yield p, factors


@functools.cache
def all_gradients(name, extra, T, k1):
    """Return the compiled function of factors `[rows, boundaries]` to gradients `[rows, P]`."""
    loss_fn, params, carry, batch = problem(name, extra, T)

    def one(row):
        return flatten(
            boundary_gradient(loss_fn, params, carry, split_windows(batch, k1), row[None]).grads
        )

    compiled = jax.jit(jax.vmap(one))
    return lambda factors: np.asarray(compiled(np.asarray(factors, float)))


def by_keys(estimator, params, carry, batch, n, seed=0):
    """Return n independent estimates, flat `[n, P]`."""
    return drawer(estimator, n)(params, carry, batch, jax.random.key(seed))


def drawer(estimator, n):
    """Return the compiled function to n independent estimates, flat `[n, P]`."""

    def draw(params, carry, batch, key):
        one = lambda key: flatten(estimator.estimate(params, carry, batch, key).grads)  # noqa: E731
        return jax.vmap(one)(jax.random.split(key, n))

    compiled = jax.jit(draw)
    return lambda *given: np.asarray(compiled(*given))


def standard_errors(draws, want):
    """Return the error of the mean of draws `[n, P]` in standard errors, in every coordinate."""
    error = np.std(draws, axis=0, ddof=1) / math.sqrt(len(draws))
    off = np.abs(np.mean(draws, axis=0) - np.asarray(want))
    tiny = 1e-12 * np.abs(want) + 1e-14  # coordinates that do not depend on the draw
    return np.where(off <= tiny, 0, off / np.maximum(error, 1e-300))


@pytest.mark.parametrize(
    "name, k1, extra, schedule",
    [
        ("elman", 3, "all", "constant"),
        # a carry with an integer counter, which has no cotangent
        pytest.param("own", 2, "weights resets", "heavy", marks=exhaustive),
        pytest.param("lstm", 1, "plain", "heavy", marks=exhaustive),
    ],
)
def test_the_mean_over_all_truncations_is_full_bptt(name, k1, extra, schedule):
    schedule = SCHEDULES[schedule]
    loss_fn, params, carry, batch = problem(name, extra, T=8 if k1 == 1 else T)
    boundaries = len(batch.inputs) // k1 - 1
    p, factors = (
        np.array(column) for column in zip(*outcomes(schedule, boundaries, k1), strict=True)
    )
    assert p.sum() == pytest.approx(1, abs=1e-12) and (p > 0).all()
    gradients = all_gradients(name, extra, len(batch.inputs), k1)
    full = run(tbptt.full_bptt(loss_fn), params, carry, batch)
    want = flat(full.grads)
    np.testing.assert_allclose(p @ gradients(factors), want, rtol=1e-10, atol=1e-13)
    biased = gradients(factors > 0)
    assert (
        np.abs(p @ biased - want).max() > 1e-2 * np.abs(want).max()
    )  # without 1 / (1 - c) it is not
    got = jax.jit(tbptt.randomized_bptt(loss_fn, k1, schedule).estimate)(
        params, carry, batch, jax.random.key(0)
    )
    chex.assert_trees_all_close((got.loss, got.memory), (full.loss, full.memory), rtol=1e-12)
    assert name != "own" or got.memory["n"] == T


@pytest.mark.parametrize("k1, schedule", [(1, SCHEDULES["constant"]), (3, SCHEDULES["heavy"])])
def test_truncations_are_drawn_with_the_probabilities_of_the_definition(k1, schedule):
    boundaries = 4
    draw = jax.vmap(lambda key: draw_factors(schedule, key, boundaries, k1))
    drawn = np.asarray(jax.jit(lambda key: draw(jax.random.split(key, DRAWS)))(jax.random.key(3)))
    seen = 0
    for p, factors in outcomes(schedule, boundaries, k1):
        number = np.isclose(drawn, factors, rtol=1e-12).all(axis=1).sum()
        seen += number
        assert abs(number - DRAWS * p) < 4.5 * math.sqrt(DRAWS * p * (1 - p)) + 1
    assert seen == DRAWS  # nothing else was drawn


@pytest.mark.parametrize(
    "name, extra, schedule",
    [
        pytest.param("gru", "all", "heavy", marks=exhaustive),
    ],
)
def test_the_mean_of_many_draws_is_full_bptt_and_fails_without_the_factors(
    name, extra, schedule, monkeypatch
):
    loss_fn, params, carry, batch = make(CELLS[name], extra)
    k1, schedule = 2, SCHEDULES[schedule]
    want = flat(run(tbptt.full_bptt(loss_fn), params, carry, batch).grads)
    draws = by_keys(tbptt.randomized_bptt(loss_fn, k1, schedule), params, carry, batch, DRAWS)
    assert standard_errors(draws, want).max() < 4
    ones = lambda *args: (draw_factors(*args) > 0).astype(float)  # noqa: E731
    monkeypatch.setattr(randomized, "draw_factors", ones)
    biased = by_keys(tbptt.randomized_bptt(loss_fn, k1, schedule), params, carry, batch, DRAWS)
    assert standard_errors(biased, want).max() > 10


def test_the_reported_variance_is_that_of_the_estimate():
    """It equals the sample variance of the draws, and on average the variance by enumeration."""
    loss_fn, params, carry, batch = make(CELLS["elman"], "all")
    schedule, k1, draws, n = SCHEDULES["constant"], 3, 4, 4000
    p, factors = (np.array(column) for column in zip(*outcomes(schedule, 3, k1), strict=True))
    grads, rows = all_gradients("elman", "all", T, k1)(factors), slice(2, 6)
    by_rows = jax.jit(
        lambda p, c, b, factors: boundary_gradient(loss_fn, p, c, split_windows(b, k1), factors)
    )
    estimate, each = jax.device_get(by_rows(params, carry, batch, factors[rows])), grads[rows]
    np.testing.assert_allclose(flat(estimate.grads), each.mean(axis=0), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(
        estimate.info.variance, np.trace(np.cov(each.T)) / len(each), rtol=1e-10
    )

    true = p @ np.sum((grads - p @ grads) ** 2, axis=1) / draws
    estimator = tbptt.randomized_bptt(loss_fn, k1, schedule, draws=draws)

    @jax.jit
    def many(key):
        out = jax.vmap(lambda key: estimator.estimate(params, carry, batch, key))(
            jax.random.split(key, n)
        )
        return out.grads, out.info.variance

    drawn, reported = jax.device_get(many(jax.random.key(5)))
    assert abs(reported.mean() - true) < 4 * reported.std() / math.sqrt(n)
    stacked = np.concatenate([leaf.reshape(n, -1) for leaf in jax.tree.leaves(drawn)], axis=1)
    assert np.sum(stacked.var(axis=0, ddof=1)) == pytest.approx(true, rel=0.15)
    single = jax.eval_shape(
        tbptt.randomized_bptt(loss_fn, k1, schedule).estimate,
        params,
        carry,
        batch,
        jax.random.key(0),
    )
    assert single.info.variance is None  # one draw has no scatter


def balancing(steps):
    batch = tbptt.Batch(np.zeros((steps, 1)), np.zeros((steps, 1)))
    return (
        {"theta": jnp.asarray(np.float64(0.5))},
        jnp.asarray(np.ones(STATES)),
        jax.tree.map(jnp.asarray, batch),
    )


@exhaustive
def test_random_truncation_of_influence_balancing_has_the_mean_in_closed_form():
    """Full BPTT's derivative is the mean of D_1 .. D_T, negative."""
    D, schedule = closed_form(400), HeavyTail(100.0)
    assert D.mean() < -4
    draws = by_keys(tbptt.randomized_bptt(linear_loss, 10, schedule), *balancing(400), DRAWS)
    assert standard_errors(draws, [D.mean()]).max() < 4


@pytest.mark.parametrize(
    "schedule", [AwdLengths(30), pytest.param(LogUniformLengths(5, 80), marks=exhaustive)]
)
def test_random_windows_of_influence_balancing_have_the_bias_of_the_closed_form(schedule):
    """Random windows use only D_1 .. D_length, positive; the mean of D_1 .. D_T is negative."""
    steps, k1 = 400, 10
    D, problem, boundaries = closed_form(steps), balancing(steps), steps // k1 - 1
    windows = tbptt.estimators.random_window_bptt(linear_loss, k1, schedule)

    @jax.jit
    @jax.vmap
    def each(key):
        row = jax.random.split(key, 1)[0]
        return windows.estimate(*problem, key), draw_window_factors(schedule, row, boundaries, k1)

    out, factors = jax.device_get(each(jax.random.split(jax.random.key(0), 2000)))
    draws = out.grads["theta"]
    assert standard_errors(draws[:, None], [D.mean()]).max() > 50  # the wrong sign
    assert draws.mean() > 0
    for i in range(5):
        edges = k1 * np.concatenate([[0], 1 + np.flatnonzero(factors[i] == 0), [steps // k1]])
        want = sum(D[: b - a].sum() for a, b in itertools.pairwise(edges)) / steps
        assert draws[i] == pytest.approx(want, abs=1e-9)
        assert out.info.longest[i] == np.diff(edges).max() and out.info.largest_product[i] == 1


def test_each_call_of_a_stream_is_unbiased():
    """The reference is full BPTT of the same call: the carry that enters it is constant."""
    loss_fn, params, carry, batch = own_problem("weights resets")
    estimator, full = (
        tbptt.randomized_bptt(loss_fn, 2, SCHEDULES["heavy"]),
        jax.jit(tbptt.full_bptt(loss_fn).estimate),
    )
    memory, batch = jax.jit(estimator.init)(params, carry, batch), jax.tree.map(np.asarray, batch)
    draw, estimate = drawer(estimator, 5000), jax.jit(estimator.estimate)
    for start in (0, 6):
        segment = oracle.part(batch, start, start + 6)
        want = full(params, memory, segment)
        assert (
            standard_errors(
                draw(params, memory, segment, jax.random.key(0)), flat(want.grads)
            ).max()
            < 4
        )
        memory = estimate(params, memory, segment, jax.random.key(0)).memory
        chex.assert_trees_all_close(memory, want.memory, rtol=1e-12)
