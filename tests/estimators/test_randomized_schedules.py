"""Schedules of random truncation: their lengths, a new draw per update, and errors."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.estimators.randomized.estimator import draw_factors, draw_window_factors
from tbptt.estimators.randomized.schedules import (
    AwdLengths,
    ConstantRate,
    HeavyTail,
    LogUniformLengths,
)
from tests.estimators.test_randomized_unbiased import SCHEDULES
from tests.support import oracle
from tests.support.estimating import CELLS, make, own_problem


@pytest.mark.parametrize("k1, schedule", [(1, SCHEDULES["constant"]), (5, SCHEDULES["heavy"])])
def test_the_mean_length_is_that_of_the_schedule(k1, schedule):
    schedule = type(schedule)(20.0)
    boundaries = 400_000
    factors = np.asarray(
        jax.jit(lambda key: draw_factors(schedule, key, boundaries, k1))(jax.random.key(2))
    )
    lengths = k1 * np.diff(np.flatnonzero(factors == 0))
    assert abs(lengths.mean() - 20) < 4 * lengths.std() / math.sqrt(len(lengths))


def test_the_heavy_tail_is_heavy():
    """P(length > l) = prod (1 - c) falls like l^-alpha, not like an exponential."""
    schedule = HeavyTail(20.0, alpha=3.0)
    survival = np.cumprod([1 - schedule.probability(since, 1) for since in range(1, 20_001)])
    assert np.log(survival[9_999] / survival[19_999]) / np.log(2) == pytest.approx(3.0, abs=0.02)


def test_random_lengths_follow_their_rules():
    keys = jax.random.split(jax.random.key(0), 50_000)
    lengths = lambda schedule: np.asarray(jax.jit(jax.vmap(schedule.length))(keys))  # noqa: E731
    awd = lengths(AwdLengths(70))
    assert (awd == np.trunc(awd)).all() and awd.min() >= 5
    usual = awd > 52.5
    assert abs(usual.mean() - 0.95) < 0.005
    # truncation towards zero takes half a step on average
    assert awd[usual].mean() == pytest.approx(69.5, abs=0.15) and awd[
        ~usual
    ].mean() == pytest.approx(34.5, abs=0.6)
    assert awd[usual].std() == pytest.approx(5, abs=0.1)
    assert lengths(AwdLengths(8)).min() == 5
    logs = np.log(lengths(LogUniformLengths(3, 300)))
    assert logs.min() >= np.log(3) - 1e-9 and logs.max() <= np.log(300) + 1e-9
    assert logs.mean() == pytest.approx(np.log(30), abs=0.03) and logs.std() == pytest.approx(
        np.log(100) / 12**0.5, abs=0.02
    )
    for k1, schedule, wanted in [
        (4, LogUniformLengths(1, 1.5), {4}),
        (4, LogUniformLengths(9, 11), {8, 12}),
    ]:
        factors = jax.jit(
            lambda key, schedule=schedule, k1=k1: draw_window_factors(schedule, key, 3000, k1)
        )(jax.random.key(1))
        assert (
            set(k1 * np.diff(np.flatnonzero(np.asarray(factors) == 0))) == wanted
        )  # rounded to blocks, at least one


def test_errors_of_schedules_and_estimators():
    loss_fn, params, carry, batch = make(CELLS["elman"])
    for estimator in (
        tbptt.randomized_bptt(loss_fn, 2, ConstantRate(4)),
        tbptt.estimators.random_window_bptt(loss_fn, 2, AwdLengths(6)),
    ):
        with pytest.raises(ValueError, match="needs a key; got None.*key=jax.random.key"):
            estimator.estimate(params, carry, batch)
        with pytest.raises(ValueError, match=r"T=11, k1=2.*weights=0"):
            estimator.estimate(
                params,
                carry,
                oracle.part(jax.tree.map(np.asarray, batch), 0, 11),
                jax.random.key(0),
            )
    plain = getattr(tbptt.randomized_bptt, "__wrapped__", tbptt.randomized_bptt)
    windows = getattr(
        tbptt.estimators.random_window_bptt, "__wrapped__", tbptt.estimators.random_window_bptt
    )
    for build, error, match in [
        (
            lambda: plain(loss_fn, 4, ConstantRate(4.0)),
            ValueError,
            r"gives 1\.0 at 4 steps since the last truncation, k1 = 4.*must be above k1",
        ),
        (lambda: plain(loss_fn, 4, HeavyTail(4.0)), ValueError, "mean length must be above k1"),
        (lambda: plain(loss_fn, 0, ConstantRate(4.0)), ValueError, "k1 must be at least 1"),
        (
            lambda: plain(loss_fn, 1, ConstantRate(4.0), draws=0),
            ValueError,
            "draws must be at least 1",
        ),
        (lambda: plain(loss_fn, 1, AwdLengths(9)), TypeError, "belong to random_window_bptt"),
        (lambda: windows(loss_fn, 1, HeavyTail(9.0)), TypeError, "belong to randomized_bptt"),
        (lambda: HeavyTail(9.0, alpha=1.0), ValueError, "alpha must be above 1"),
        (lambda: HeavyTail(math.inf), ValueError, r"positive and finite.*full_bptt"),
        (
            lambda: ConstantRate(math.inf),
            ValueError,
            r"positive and finite.*full_bptt",
        ),  # probability 0
        (lambda: ConstantRate(math.nan), ValueError, "positive and finite"),
        (lambda: ConstantRate(0.0), ValueError, "mean_length must be positive"),
        (lambda: AwdLengths(0), ValueError, "must be positive"),
        (lambda: AwdLengths(9, base_probability=1.5), ValueError, "probability"),
        (lambda: LogUniformLengths(5, 4), ValueError, "shortest <= longest"),
    ]:
        with pytest.raises(error, match=match):
            build()
    assert hash(HeavyTail(9.0)) == hash(HeavyTail(9.0)) and HeavyTail(9.0) == HeavyTail(9.0)


class After(NamedTuple):
    """A schedule of the user: probability 0 before `steps`, then c."""

    steps: float
    c: float

    def probability(self, since, k1):
        return jnp.where(since < self.steps, 0.0, self.c)


def test_a_schedule_with_probability_1_or_always_0_is_refused():
    """At probability 1 no factor corrects the mean: it would be biased without an error."""
    loss_fn, params, carry, batch = own_problem()
    key = jax.random.key(0)
    for schedule, match in [
        (After(6, 1.0), r"below 1.* gives 1.0 at 6 steps since the last truncation, k1 = 2"),
        (After(6, math.nan), "gives nan at 6 steps"),
        (After(1000, 0.5), r"probability 0 at all 5 boundaries of a call: use full_bptt"),
    ]:
        estimator = tbptt.randomized_bptt(loss_fn, 2, schedule)
        for estimate in (estimator.estimate, jax.jit(estimator.estimate)):
            with pytest.raises(ValueError, match=match):
                estimate(params, carry, batch, key)
    late = tbptt.randomized_bptt(loss_fn, 2, After(8, 0.5), draws=64)
    out = jax.jit(late.estimate)(params, carry, batch, key)
    assert out.info.longest >= 8 and out.info.largest_product in (2.0, 4.0)


def test_training_passes_a_new_key_to_every_update():
    import optax

    loss_fn, params, carry, batch = own_problem(T=48)
    estimator, optimizer = (
        tbptt.randomized_bptt(loss_fn, 2, HeavyTail(6.0), draws=3),
        optax.sgd(0.05),
    )
    state = tbptt.init_state(estimator, optimizer, params, carry, batch, jax.random.key(7))
    state, metrics = tbptt.make_train_epoch(estimator, optimizer, 12)(state, batch)
    assert metrics.info.losses.shape == (4, 6) and np.isfinite(metrics.loss).all()
    assert len(set(np.asarray(metrics.info.mean_length))) > 1
