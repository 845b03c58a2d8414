"""Random truncation: unbiased by enumeration and by draws, biased where it says so, and honest about its scatter."""

import functools
import itertools
import math
from typing import NamedTuple

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
from tests.test_estimators import CELLS, EXTRAS, B, T, make, own_loss, run
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


@pytest.mark.parametrize("name, extra", list(zip(CELLS, EXTRAS, strict=True)))
def test_never_cutting_is_full_bptt(name, extra):
    loss_fn, params, carry, batch = make(CELLS[name], extra)
    got = jax.jit(functools.partial(seam_gradient, loss_fn))(params, carry, cut(batch, 3), jnp.ones((2, 3)))
    want = run(tbptt.full_bptt(loss_fn), params, carry, batch)
    chex.assert_trees_all_close(got[:3], want[:3], rtol=1e-12, atol=1e-14)
    assert got.info.longest == got.info.mean_length == T and got.info.largest_product == 1
    assert got.info.variance < 1e-28


def test_cut_at_every_seam_is_disjoint_truncation():
    loss_fn, params, carry, batch = make(CELLS["lstm"], "all")
    got = jax.jit(functools.partial(seam_gradient, loss_fn))(params, carry, cut(batch, 3), jnp.zeros((2, 3)))
    want = run(tbptt.truncated_bptt(loss_fn, 3, 3), params, carry, batch)
    chex.assert_trees_all_close(got[:3], want[:3], rtol=1e-11, atol=1e-14)
    chex.assert_trees_all_close((got.info.losses, got.info.weights), tuple(want.info), rtol=1e-12)


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


def test_lengths_and_products_are_reported():
    loss_fn, params, carry, batch = make(CELLS["elman"])
    factors = jnp.array([[2.0, 0.0, 1.5, 1.5, 0.0], [0.0, 0.0, 3.0, 0.0, 1.25]])
    info = jax.jit(functools.partial(seam_gradient, loss_fn))(params, carry, cut(batch, 2), factors).info
    # stretches of 2 3 1 and 1 1 2 2 blocks of 2 steps
    assert info.longest == 6 and info.largest_product == 3.0 and info.mean_length == pytest.approx(2 * 12 / 7)


@pytest.mark.parametrize("k1", [1, 5])
@each_schedule
def test_the_mean_length_is_the_one_asked_for(k1, schedule):
    schedule = type(schedule)(20.0)
    seams = 400_000
    factors = np.asarray(jax.jit(lambda key: draw_factors(schedule, key, seams, k1))(jax.random.key(2)))
    lengths = k1 * np.diff(np.flatnonzero(factors == 0))
    assert abs(lengths.mean() - 20) < 4 * lengths.std() / math.sqrt(len(lengths))


def test_the_heavy_tail_is_heavy():
    """P(length > l) = prod (1 - c) falls like l^-alpha, not like an exponential."""
    schedule = HeavyTail(20.0, alpha=3.0)
    survival = np.cumprod([1 - schedule.probability(since, 1) for since in range(1, 20_001)])
    assert np.log(survival[9_999] / survival[19_999]) / np.log(2) == pytest.approx(3.0, abs=0.02)


def test_a_cut_stops_what_is_not_finite():
    """An explosion beyond a cut is not there: 0 times inf would be NaN."""

    def loss(params, carry, batch):  # one step at a time; the carry stays at 1
        carry = 1 + batch.inputs[0, 0, 0] * (carry - 1) + (params - 0.5)
        return carry, carry

    slopes = jnp.array([1.0, 1.0, 1e200, 1e200, 1.0])[:, None, None]
    blocks = cut(tbptt.Batch(slopes, slopes), 1)
    grads = lambda row: seam_gradient(loss, jnp.array(0.5), jnp.array(1.0), blocks, jnp.array([row])).grads  # noqa: E731
    assert grads([1.0, 1.0, 1.0, 1.0]) == jnp.inf
    assert grads([1.0, 0.0, 1.0, 1.0]) == pytest.approx(2e200 / 5)


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


def test_random_lengths_follow_their_rules():
    keys = jax.random.split(jax.random.key(0), 50_000)
    awd = np.asarray(jax.vmap(AwdLengths(70).length)(keys))
    assert (awd == np.trunc(awd)).all() and awd.min() >= 5
    usual = awd > 52.5
    assert abs(usual.mean() - 0.95) < 0.005
    # truncation towards zero takes half a step on average
    assert awd[usual].mean() == pytest.approx(69.5, abs=0.15) and awd[~usual].mean() == pytest.approx(34.5, abs=0.6)
    assert awd[usual].std() == pytest.approx(5, abs=0.1)
    assert np.asarray(jax.vmap(AwdLengths(8).length)(keys)).min() == 5
    logs = np.log(np.asarray(jax.vmap(LogUniformLengths(3, 300).length)(keys)))
    assert logs.min() >= np.log(3) - 1e-9 and logs.max() <= np.log(300) + 1e-9
    assert logs.mean() == pytest.approx(np.log(30), abs=0.03) and logs.std() == pytest.approx(
        np.log(100) / 12**0.5, abs=0.02
    )
    for k1, schedule, lengths in [(4, LogUniformLengths(1, 1.5), {4}), (4, LogUniformLengths(9, 11), {8, 12})]:
        cuts = np.asarray(draw_cuts(schedule, jax.random.key(1), 3000, k1))
        assert set(k1 * np.diff(np.flatnonzero(cuts == 0))) == lengths  # rounded to blocks, at least one


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


@pytest.mark.parametrize("make_estimator", [
    lambda f, k1: tbptt.randomized_bptt(f, k1, HeavyTail(100.0), draws=2),
    lambda f, k1: tbptt.random_window_bptt(f, k1, AwdLengths(70)),
])  # fmt: skip
def test_the_traced_program_does_not_grow_and_memory_holds_one_block(make_estimator):
    def lowered(length, k1):
        loss_fn, params, carry, batch = make(CELLS["lstm"], T=length)
        return jax.jit(make_estimator(loss_fn, k1).estimate), (params, carry, batch, jax.random.key(0))

    def size(length, k1):
        estimate, args = lowered(length, k1)
        return str(jax.make_jaxpr(estimate)(*args)).count("\n")

    assert abs(size(64, 8) - size(1024, 32)) <= 2  # the printer breaks its lines by width

    def temp(length, k1):
        estimate, args = lowered(length, k1)
        return estimate.lower(*args).compile().memory_analysis().temp_size_in_bytes

    seam = 8 * (2 * B * 4 + 40)  # bytes of an LSTM carry, and what a seam's draw needs
    data = 8 * B * 4  # inputs and targets of a step, which XLA may copy
    assert temp(4096, 32) - temp(1024, 32) <= 3 * (seam * 96 + 2 * data * 3072)


def test_what_is_refused():
    loss_fn, params, carry, batch = make(CELLS["elman"])
    for estimator in (
        tbptt.randomized_bptt(loss_fn, 2, ConstantRate(4)),
        tbptt.random_window_bptt(loss_fn, 2, AwdLengths(6)),
    ):
        with pytest.raises(ValueError, match="needs a key; got None.*key=jax.random.key"):
            estimator.estimate(params, carry, batch)
        with pytest.raises(ValueError, match=r"T=11, k1=2.*weights=0"):
            estimator.estimate(params, carry, oracle.part(batch, 0, 11), jax.random.key(0))
    plain = getattr(tbptt.randomized_bptt, "__wrapped__", tbptt.randomized_bptt)
    windows = getattr(tbptt.random_window_bptt, "__wrapped__", tbptt.random_window_bptt)
    for build, error, match in [
        (
            lambda: plain(loss_fn, 4, ConstantRate(4.0)),
            ValueError,
            r"gives 1\.0 at 4 steps since the last cut, k1 = 4.*must be above k1",
        ),
        (lambda: plain(loss_fn, 4, HeavyTail(4.0)), ValueError, "mean length must be above k1"),
        (lambda: plain(loss_fn, 0, ConstantRate(4.0)), ValueError, "k1 must be at least 1"),
        (lambda: plain(loss_fn, 1, ConstantRate(4.0), draws=0), ValueError, "draws must be at least 1"),
        (lambda: plain(loss_fn, 1, AwdLengths(9)), TypeError, "belong to random_window_bptt"),
        (lambda: windows(loss_fn, 1, HeavyTail(9.0)), TypeError, "belong to randomized_bptt"),
        (lambda: HeavyTail(9.0, alpha=1.0), ValueError, "alpha must be above 1"),
        (lambda: HeavyTail(math.inf), ValueError, r"positive and finite.*full_bptt"),
        (lambda: ConstantRate(math.inf), ValueError, r"positive and finite.*full_bptt"),  # probability 0
        (lambda: ConstantRate(math.nan), ValueError, "positive and finite"),
        (lambda: ConstantRate(0.0), ValueError, "mean_length must be positive"),
        (lambda: AwdLengths(0), ValueError, "positive steps"),
        (lambda: AwdLengths(9, usual=1.5), ValueError, "probability"),
        (lambda: LogUniformLengths(5, 4), ValueError, "shortest <= longest"),
    ]:
        with pytest.raises(error, match=match):
            build()
    assert hash(HeavyTail(9.0)) == hash(HeavyTail(9.0)) and HeavyTail(9.0) == HeavyTail(9.0)


class After(NamedTuple):
    """Never cuts before `steps`, then with probability c: a schedule of the user's own."""

    steps: float
    c: float

    def probability(self, since, k1):
        return jnp.where(since < self.steps, 0.0, self.c)


def test_a_schedule_that_cuts_for_certain_or_never_is_refused_wherever_it_does():
    """Cut for certain, a signal has no factor that makes up for it: the mean would be biased, and nothing would say so."""
    loss_fn, params, carry, batch = make(CELLS["elman"])
    key = jax.random.key(0)
    for schedule, match in [
        (After(6, 1.0), r"probability below 1.* gives 1.0 at 6 steps since the last cut, k1 = 2"),
        (After(6, math.nan), "gives nan at 6 steps"),
        (After(1000, 0.5), r"probability 0 at all 5 seams of a call: use full_bptt"),
    ]:
        estimator = tbptt.randomized_bptt(loss_fn, 2, schedule)
        for estimate in (estimator.estimate, jax.jit(estimator.estimate)):
            with pytest.raises(ValueError, match=match):
                estimate(params, carry, batch, key)
    late = tbptt.randomized_bptt(loss_fn, 2, After(8, 0.5), draws=64)
    out = jax.jit(late.estimate)(params, carry, batch, key)
    assert out.info.longest >= 8 and out.info.largest_product in (2.0, 4.0)


def test_training_hands_over_a_new_key_for_every_update():
    import optax

    loss_fn, params, carry, batch = make(CELLS["elman"], T=48)
    estimator, optimizer = tbptt.randomized_bptt(loss_fn, 2, HeavyTail(6.0), draws=3), optax.sgd(0.05)
    state = tbptt.init_state(estimator, optimizer, params, carry, batch, jax.random.key(7))
    state, metrics = tbptt.make_train_epoch(estimator, optimizer, 12)(state, batch)
    assert metrics.info.losses.shape == (4, 6) and np.isfinite(metrics.loss).all()
    assert len(set(np.asarray(metrics.info.mean_length))) > 1
