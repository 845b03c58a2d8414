"""Choosing the window: closed forms, what is not a decay, Theorem 1 as an inequality, and TBPTT exactly at every call."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tbptt.estimators.by_lag import measure_by_lag
from tbptt.norms import global_norm
from tests import oracle
from tests.test_estimators import CELLS, B, make, own_loss, run

ALL = tuple(range(1, 101))
choose_window = jax.jit(tbptt.choose_window, static_argnums=(1, 2, 3), static_argnames=("k1", "level"))


def geometric(a, lags):
    return a ** np.arange(1, lags + 1.0)


def picked(choice, windows):
    return windows[int(choice.chosen)]


# ---- the pure choice


def fast_then_slow(lags):
    """phi_1 = 1, halved at every lag up to 8, then a slow decay by 0.95."""
    k = np.arange(1, lags + 1)
    return np.where(k <= 8, 0.5 ** (k - 1.0), 0.5**7.0 * 0.95 ** (k - 8.0))


def test_two_time_scales_where_a_fit_of_all_lags_is_wrong():
    lags, delta = 10, 0.1
    slow = 0.5**7 / (1 - 0.95)  # what lags 8, 9, ... sum to, without end
    left = lambda K: sum(0.5 ** (k - 1) for k in range(K, 8)) + slow  # noqa: E731
    total = left(1)
    assert [K for K in range(2, 9) if left(K) / (total - left(K)) < delta][0] == 7
    slope, first = np.polyfit(np.arange(1, lags + 1), np.log(fast_then_slow(lags)), 1)
    fitted = lambda K: np.exp(first + slope * K) / (1 - np.exp(slope))  # noqa: E731
    assert [K for K in range(1, 9) if 0 < fitted(K) / (total - fitted(K)) < delta][0] == 5  # all lags in one line
    choice = choose_window(fast_then_slow(lags), ALL, delta, 8)
    assert picked(choice, ALL) == 7 and choice.enough and choice.decays
    np.testing.assert_allclose(choice.beta, 0.95, rtol=1e-12)
    np.testing.assert_allclose(choice.absolute[:8], [left(K) for K in range(1, 9)], rtol=1e-10)
    scaled = choose_window(fast_then_slow(lags), ALL, delta, 8, scale=total)
    np.testing.assert_allclose(scaled.relative[6], left(7) / (total - left(7)), rtol=1e-10)
    assert picked(scaled, ALL) == 7
    assert (
        picked(choose_window(fast_then_slow(lags), ALL, delta, 1), ALL) >= 7
    )  # the line is lifted over all that it missed


def test_an_explosion_takes_the_largest_window_and_says_so():
    for lags, windows in [(50, (1, 5, 20)), (100, ALL)]:
        choice = choose_window(geometric(1.05, lags), windows, 0.9, lags // 2)
        assert picked(choice, windows) == windows[-1] and not choice.decays and not choice.enough
        np.testing.assert_allclose(choice.beta, 1.05, rtol=1e-12)
        assert np.isinf(choice.absolute).all() and np.isinf(choice.relative).all()
    late = np.where(np.arange(50) < 25, 0.5 ** np.arange(50.0), 0.5**25 * 1.01 ** np.arange(50.0))
    assert not choose_window(late, ALL, 0.9, 30).decays  # tiny, but it grows
    assert not choose_window(np.ones(30), ALL, 0.5, 10).decays  # beta = 1


def test_outside_jit_a_choice_without_a_bound_warns_in_words():
    """1.05^k; a decay too slow for every window; and one that is enough, of which nothing is said unless asked."""
    with pytest.warns(UserWarning, match=r"do not surely decay.*beta 1\.05.*nothing bounds.*k2 = 20 is the largest"):
        tbptt.choose_window(geometric(1.05, 50), (1, 5, 20), 0.9, 25)
    with pytest.warns(
        UserWarning, match=r"no window is long enough: k2 = 20.*relative bias of at most 4\.8, not below.*0\.5"
    ):
        tbptt.choose_window(geometric(0.99, 50), (1, 5, 20), 0.5, 25, scale=0.99 / 0.01)
    choice = tbptt.choose_window(geometric(0.5, 50), (1, 5, 20), 0.5, 25)
    assert tbptt.explain_choice(choice, (1, 5, 20), 0.5).startswith("k2 = 5: its relative bias is at most 0.067, below")


@pytest.mark.parametrize("k1", [1, 4])
@pytest.mark.parametrize("a", [0.3, 0.9, 0.99])
def test_a_geometric_decay_in_closed_form(a, k1):
    lags, windows = 40, (4, 5, 9, 16, 33, 60, 200)
    choice = choose_window(geometric(a, lags), windows, 0.2, 5, k1=k1, scale=a / (1 - a))
    R = lambda n: a**n / (1 - a)  # noqa: E731
    want = np.array([np.mean([R(k2 - k1 + i) for i in range(1, k1 + 1)]) for k2 in windows])
    np.testing.assert_allclose(choice.absolute, want, rtol=1e-9)
    relative = np.where(want < a / (1 - a), want / (a / (1 - a) - want), np.inf)
    np.testing.assert_allclose(choice.relative, relative, rtol=1e-8)
    np.testing.assert_allclose([choice.beta, *choice.interval], a, rtol=1e-10)
    good = [k2 for k2, r in zip(windows, relative, strict=True) if r < 0.2]
    assert picked(choice, windows) == (good[0] if good else windows[-1]) and bool(choice.enough) == bool(good)
    assert choice.decays


def test_a_window_shorter_than_the_stride_has_no_bound():
    choice = choose_window(geometric(0.1, 10), (2, 3, 4, 8), 0.5, 3, k1=4)
    assert np.isinf(choice.absolute[:2]).all() and np.isfinite(choice.absolute[2:]).all()
    assert picked(choice, (2, 3, 4, 8)) >= 4


def test_the_interval_is_students_and_its_upper_end_counts():
    from scipy import stats

    rng, tau, lags = np.random.default_rng(0), 6, 14
    k = np.arange(1, lags + 1.0)
    phi = 0.9**k * np.exp(0.1 * rng.standard_normal(lags))
    line = stats.linregress(k[tau - 1 :], np.log(phi[tau - 1 :]))
    half = stats.t.ppf(0.5 + 0.9 / 2, lags - tau - 1) * line.stderr
    choice = choose_window(phi, (lags, 30), 0.9, tau, level=0.9)
    np.testing.assert_allclose(choice.beta, np.exp(line.slope), rtol=1e-12)
    np.testing.assert_allclose(choice.interval, np.exp([line.slope - half, line.slope + half]), rtol=1e-12)
    high = float(choice.interval[1])
    anchor = np.max((phi / high ** (k - tau))[tau - 1 :])
    np.testing.assert_allclose(choice.absolute, [anchor * high ** (n - tau) / (1 - high) for n in (lags, 30)], rtol=1e-10)
    noisy = 0.99**k * np.exp(0.5 * rng.standard_normal(lags))
    wide = choose_window(noisy, (2, 30), 0.9, tau)
    assert wide.beta < 1 < wide.interval[1] and not wide.decays and wide.chosen == 1  # beta < 1 is not enough
    absolute = choose_window(phi, tuple(range(1, lags + 1)), 0.5, tau).absolute
    assert (absolute >= np.cumsum(phi[::-1])[::-1] * (1 - 1e-12)).all()  # never below what was measured


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "phi, decays, chosen",
    [
        (np.zeros(8), True, 0),  # the loss does not look back at all
        ([1.0, 0.5, 0, 0, 0, 0, 0, 0], True, 1),  # it looks back two steps, and no further: 0.5 / (1.5 - 0.5)
        ([1.0, 1, 1, 1, 1, 1, 1, 0], True, 3),  # a cliff: what was measured is all there is
        ([1.0, 1, 1, 0, 0, 0, 0, 1e-3], False, 3),  # fewer than three points to fit
        ([1.0, 0.1, np.nan, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], False, 3),
        ([np.inf, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], False, 3),
        ([1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, -1e-7], False, 3),
        ([1e30, 1e25, 1e20, 1e15, 1e10, 1e5, 1.0, 1e-5], True, 1),
        ([1e-5, 1e-10, 1e-15, 1e-20, 1e-25, 1e-30, 1e-35, 0], True, 1),  # underflow
        ([1e38, 1e38, 1e37, 1e36, 1e35, 1e34, 1e33, 1e32], True, 2),  # in float32 the sum is not a number any more
    ],
)
def test_nothing_is_undefined(phi, decays, chosen, dtype):
    windows = (1, 2, 3, 8)
    choice = choose_window(np.asarray(phi, dtype), windows, 0.6, 3)
    assert bool(choice.decays) is decays and int(choice.chosen) == chosen
    assert not np.isnan(choice.absolute).any() and not np.isnan(choice.relative).any()
    assert not np.isnan(choice.interval).any() and choice.absolute.dtype == dtype
    assert np.isinf(choice.absolute).all() != decays
    assert bool(choice.enough) == bool(choice.relative[chosen] < 0.6)


def test_an_unusable_scale_takes_the_largest():
    for scale, chosen in [(np.nan, 2), (0.0, 2), (-1.0, 2), (np.inf, 0)]:  # inf: no step contributes to the gradient
        assert choose_window(geometric(0.5, 10), (1, 4, 8), 0.5, 4, scale=scale).chosen == chosen


def test_what_the_choice_refuses():
    plain = getattr(tbptt.choose_window, "__wrapped__", tbptt.choose_window)
    phi = geometric(0.5, 10)
    for args, error, match in [
        ((phi, (), 0.5, 3), ValueError, "at least one"),
        ((phi, (4, 4), 0.5, 3), ValueError, "strictly increasing"),
        ((phi, (0, 4), 0.5, 3), ValueError, r"windows\[0\]"),
        *(((phi, (1, 4), delta, 3), ValueError, "delta must be") for delta in (0.0, 1.0, -0.1, 1.5, np.nan)),
        ((phi, (1, 4), 0.5, 9), ValueError, "tau=9, lags=10"),
        ((phi, (1, 4), 0.5, 0), ValueError, "tau must be at least 1"),
        ((phi[None], (1, 4), 0.5, 3), ValueError, r"\(1, 10\)"),
    ]:
        with pytest.raises(error, match=match):
            plain(*args)
    with pytest.raises(ValueError, match="level"):
        plain(phi, (1, 4), 0.5, 3, level=1.0)
    adaptive = getattr(tbptt.adaptive_bptt, "__wrapped__", tbptt.adaptive_bptt)
    for kwargs, match in [
        (dict(lags=3, tau=2), "tau=2, lags=3"),
        (dict(smoothing=1.0), "smoothing"),
        (dict(every=0), "every"),
    ]:
        with pytest.raises(ValueError, match=match):
            adaptive(own_loss, 2, (2, 4), 0.5, **kwargs)
    _, params, carry, batch = make(CELLS["elman"])
    with pytest.raises(ValueError, match="T=12, k1=5"):
        run(tbptt.adaptive_bptt(make(CELLS["elman"])[0], 5, (5, 10), 0.5), params, carry, batch)


# ---- gradients by lag


def lanes_by_autodiff(loss_fn, params, carry, batch, steps, lags):
    """||d L_s / d carry_{s-k}|| of every lane, `[len(steps), lags, B]`: what is added to a carry counts as the carry."""

    def losses(added):
        out, entering = [], carry
        for t in range(len(batch.inputs)):
            entering = jax.tree.map(jnp.add, entering, added[t])
            loss, entering = loss_fn(params, entering, oracle.part(batch, t, t + 1))
            out.append(loss)
        return jnp.stack(out)[np.asarray(steps)]

    none = [jax.tree.map(jnp.zeros_like, carry) for _ in batch.inputs]
    by_carry = [jax.tree.leaves(tree) for tree in jax.jit(jax.jacrev(losses))(none)]  # leaves [S, B, ...]
    norms = np.sqrt([sum(np.sum(np.square(leaf), axis=tuple(range(2, leaf.ndim))) for leaf in tree) for tree in by_carry])
    return np.array([[norms[s - k + 1, i] for k in range(1, lags + 1)] for i, s in enumerate(steps)])


@pytest.mark.parametrize("name, extra", [("lstm", "all"), ("stack", "weights")])
def test_phi_is_what_autodiff_gives_one_lag_at_a_time(name, extra):
    loss_fn, params, carry, batch = make(CELLS[name], extra, T=7)
    lags, S = 5, 3
    got = jax.jit(lambda p, c, b: measure_by_lag(loss_fn, p, c, b, lags))(params, carry, batch)
    each = lanes_by_autodiff(loss_fn, params, carry, batch, (4, 5, 6), lags)
    weight = float(oracle.weight_of(oracle.part(batch, 7 - S, 7)))
    np.testing.assert_allclose(got.phi, np.sum(each, axis=(0, 2)) / weight, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(got.weight, weight, rtol=1e-12)
    assert (got.phi > 0).sum() >= 3


@pytest.mark.parametrize("name, extra", [("elman", "plain"), ("lstm", "all")])
def test_theorem_1_measured_bias_is_never_above_the_bound(name, extra, record_property):
    lags, Ks, slack = 10, (1, 2, 4, 7), []
    loss_fn = make(CELLS[name], extra)[0]
    estimators = [tbptt.full_bptt(loss_fn), *(tbptt.truncated_bptt(loss_fn, 1, K) for K in Ks)]

    def one(params, carry, batch):
        grads = [e.estimate(params, e.init(params, carry, batch), batch).grads for e in estimators]
        return measure_by_lag(loss_fn, params, carry, batch, lags), grads

    points = []
    for seed in range(8):
        _, params, carry, batch = make(CELLS[name], extra, seed=seed, T=lags)
        params = jax.tree.map(lambda p, seed=seed: p * (0.6 + 0.2 * seed), params)
        last = jnp.zeros((lags, B)).at[-1].set(1.0 if batch.weights is None else batch.weights[-1])
        points.append((params, carry, batch._replace(weights=last)))
    found = jax.jit(jax.vmap(one))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *points))
    for seed in range(8):
        seen, (full, *truncated) = jax.tree.map(lambda a, seed=seed: a[seed], found)
        M = np.max(np.where(seen.phi[:-1] > 0, seen.parts / np.where(seen.phi[:-1] > 0, seen.phi[:-1], 1), 0))
        sizes = [float(global_norm(g)) for g in (full, *truncated)]
        assert seen.largest >= max(sizes) * (1 - 1e-10)
        for K, g in zip(Ks, truncated, strict=True):
            bias = float(global_norm(jax.tree.map(jnp.subtract, g, full)))
            bound = float(seen.parts[K - 1 :].sum())  # lag K first
            loose = M * float(seen.phi[K - 1 : -1].sum())
            assert bias <= bound * (1 + 1e-9) + 1e-14 and bound <= loose * (1 + 1e-9) + 1e-14
            slack += [bound / bias] if bias > 1e-12 else []
    assert len(slack) > 10 and np.median(slack) < 10  # a bound, and not an empty one
    record_property("slack", f"bound / bias: median {np.median(slack):.3g}, range {min(slack):.3g} .. {max(slack):.3g}")
    print(f"{name}: bound / bias: median {np.median(slack):.3g}, range {min(slack):.3g} .. {max(slack):.3g}")


def linear_loss(params, carry, batch):
    """h' = a h + x, L = h: phi_k = |a|^k exactly."""

    def body(h, x):
        h = params["a"] * h + x[..., 0]
        return h, jnp.sum(h)

    carry, losses = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(losses), carry


@pytest.mark.parametrize("a", [0.5, -0.9, 0.999, 1.1])
def test_a_linear_cell_gives_its_own_beta(a):
    xs = jax.random.normal(jax.random.key(0), (24, B, 1))
    estimator = tbptt.adaptive_bptt(linear_loss, 2, (2, 6, 12), 0.5, losses=3, lags=10, tau=4)
    info = run(estimator, {"a": jnp.array(a, float)}, jnp.zeros(B), tbptt.Batch(xs, xs)).info
    np.testing.assert_allclose(info.phi, abs(a) ** np.arange(1, 11), rtol=1e-12)
    np.testing.assert_allclose(info.choice.beta, abs(a), rtol=1e-11)
    assert bool(info.choice.decays) == (abs(a) < 1) and info.measured and info.estimates == 1
    assert info.k2 == 12 and (abs(a) < 1 or info.next_k2 == 12)


# ---- the estimator


def feed(estimator, params, carry, batch, piece, lr=0.0, force=None):
    """Calls piece by piece with SGD in between; yields (params used, piece, output)."""
    memory, estimate = estimator.init(params, carry, jax.eval_shape(lambda: batch)), jax.jit(estimator.estimate)
    for i, start in enumerate(range(0, len(batch.inputs), piece)):
        if force is not None:
            chosen = jnp.asarray(force[i % len(force)], jnp.int32)
            memory = memory._replace(choice=memory.choice._replace(chosen=chosen))
        out = estimate(params, memory, oracle.part(batch, start, start + piece))
        yield out
        memory, params = out.memory, jax.tree.map(lambda p, g: p - lr * g if lr else p, params, out.grads)
    assert estimate._cache_size() == 1  # switching compiles nothing


@pytest.mark.parametrize("k1, k2, piece", [(2, 5, 2), (2, 4, 6), (3, 2, 6), (4, 40, 4)])
def test_a_single_window_is_truncated_bptt_exactly(k1, k2, piece):
    loss_fn, params, carry, batch = make(CELLS["elman"], "all")
    got = feed(tbptt.adaptive_bptt(loss_fn, k1, (k2,), 0.5, lags=5, tau=2), params, carry, batch, piece, lr=0.3)
    want = feed(tbptt.truncated_bptt(loss_fn, k1, k2), params, carry, batch, piece, lr=0.3)
    for a, b in zip(got, want, strict=True):
        chex.assert_trees_all_close(a[:2], b[:2], rtol=1e-10, atol=1e-14)
        chex.assert_trees_all_close((a.info.losses, a.info.weights), tuple(b.info), rtol=1e-12)
        assert a.info.k2 == k2 == a.info.next_k2


@pytest.mark.parametrize("extra, piece", [("plain", 4), ("all", 2)])
def test_switching_in_mid_stream_is_truncated_bptt_with_the_window_of_that_call(extra, piece):
    """Under changing parameters: each call against TBPTT(k1, k2) that was fed the same stream and parameters all along."""
    k1, windows, order, lr = 2, (1, 2, 3, 7, 10), (4, 0, 3, 1, 2, 4, 2, 3, 0), 0.3
    loss_fn, params, carry, batch = make(CELLS["elman"], extra, T=32)
    adaptive = tbptt.adaptive_bptt(loss_fn, k1, windows, 0.5, lags=8, tau=3)
    others = [tbptt.truncated_bptt(loss_fn, k1, k2) for k2 in windows]
    estimates = jax.jit(lambda p, memories, b: [e.estimate(p, m, b) for e, m in zip(others, memories, strict=True)])
    memories = [other.init(params, carry, batch) for other in others]
    for i, out in enumerate(feed(adaptive, params, carry, batch, piece, lr, force=order)):
        steps = oracle.part(batch, i * piece, (i + 1) * piece)
        every = estimates(params, memories, steps)
        which = order[i % len(order)]
        chex.assert_trees_all_close(out[:2], every[which][:2], rtol=1e-9, atol=1e-13)
        assert out.info.k2 == windows[which]
        memories = [one.memory for one in every]
        params = jax.tree.map(lambda p, g: p - lr * g, params, out.grads)


def test_it_shrinks_the_window_of_a_forgetful_cell_and_keeps_it_for_a_long_memory():
    xs = jax.random.normal(jax.random.key(0), (60, B, 1))
    batch = tbptt.Batch(1 + xs, xs)
    estimator = tbptt.adaptive_bptt(linear_loss, 2, (2, 4, 8, 16, 32), 0.1)
    for a, last in [(0.3, 4), (0.8, 16), (0.98, 32), (1.02, 32)]:
        infos = [out.info for out in feed(estimator, {"a": jnp.array(a, float)}, jnp.zeros(B), batch, 2)]
        assert all(info.k2 == 32 for info in infos[:16]) and not any(info.measured for info in infos[:15])  # too young
        assert infos[-1].k2 == last, (a, infos[-1])
        assert [int(info.next_k2) for info in infos[:-1]] == [int(info.k2) for info in infos[1:]]
    assert infos[-1].choice.beta == pytest.approx(1.02) and not infos[-1].choice.decays


def test_exact_with_a_users_own_loss_function():
    """Her carry counts in integers, which have no cotangent."""
    batch = make(CELLS["elman"], T=24)[-1]
    params, carry = {"w": jnp.array(0.9, float)}, {"s": jnp.full((B,), 0.2, float), "n": jnp.zeros((), jnp.int32)}
    windows, order = (2, 5), (1, 0, 0, 1)
    got = feed(tbptt.adaptive_bptt(own_loss, 2, windows, 0.1, losses=2), params, carry, batch, 4, force=order)
    want = [list(feed(tbptt.truncated_bptt(own_loss, 2, k2), params, carry, batch, 4)) for k2 in windows]
    for i, out in enumerate(got):
        chex.assert_trees_all_close(out[:2], want[order[i % 4]][i][:2], rtol=1e-10)
        assert out.memory.trail.carries[0]["n"] == 4 * (i + 1)  # of window 2: it enters the next call
    assert (out.info.phi > 0).all() and out.info.estimates >= 3


def test_lanes_are_measured_apart_only_where_the_carry_has_them():
    """A carry with a leaf that no lane owns is one vector."""

    def loss(params, carry, batch):
        def body(state, x):
            h, common = state
            h = params * h + x[..., 0] + common
            return (h, 0.5 * common), jnp.sum(h**2)

        carry, losses = jax.lax.scan(body, carry, batch.inputs)
        return jnp.sum(losses), carry

    xs = jax.random.normal(jax.random.key(0), (6, B, 1))
    carry = (jnp.ones(B), jnp.ones(()))
    got = measure_by_lag(loss, jnp.array(0.7), carry, tbptt.Batch(xs, xs), 6)
    whole = lambda start: jax.grad(  # noqa: E731
        lambda c: loss(
            0.7, loss(0.7, c, oracle.part(tbptt.Batch(xs, xs), start, 5))[1], oracle.part(tbptt.Batch(xs, xs), 5, 6)
        )[0]
    )
    for k in (2, 6):
        entering = loss(0.7, carry, oracle.part(tbptt.Batch(xs, xs), 0, 6 - k))[1] if k < 6 else carry
        want = np.sqrt(sum(np.sum(np.square(g)) for g in whole(6 - k)(entering))) / B
        np.testing.assert_allclose(got.phi[k - 1], want, rtol=1e-10)


def test_estimates_come_every_so_many_calls_and_are_smoothed():
    loss_fn, params, carry, batch = make(CELLS["elman"], T=40)
    make_one = lambda **kwargs: tbptt.adaptive_bptt(loss_fn, 2, (2, 8), 0.1, **kwargs)  # noqa: E731
    infos = [out.info for out in feed(make_one(every=3), params, carry, batch, 2)]
    assert [bool(info.measured) for info in infos] == [i in (3, 6, 9, 12, 15, 18) for i in range(20)]
    assert infos[-1].estimates == 6
    newest = np.array([out.info.phi for out in feed(make_one(smoothing=0.0), params, carry, batch, 2)])[3:]
    smooth = np.array([out.info.phi for out in feed(make_one(smoothing=0.8), params, carry, batch, 2)])[3:]
    mean = newest[0]
    for n, (new, got) in enumerate(zip(newest, smooth, strict=True)):
        mean = mean + max(0.2, 1 / (n + 1)) * (new - mean)
        np.testing.assert_allclose(got, mean, rtol=1e-10)
    assert np.std(newest, axis=0).max() > 1e-3 * newest.max()


def test_what_is_not_finite_is_left_out_and_reported():
    loss_fn, params, carry, batch = make(CELLS["elman"], T=24)
    bad = batch._replace(targets=batch.targets.at[11, 0, 0].set(jnp.inf))
    estimator = tbptt.adaptive_bptt(loss_fn, 2, (2, 8), 0.9, smoothing=0.5)
    infos = [out.info for out in feed(estimator, params, carry, bad, 2)]
    assert [bool(info.broken) for info in infos] == [i == 5 for i in range(12)]
    assert infos[5].next_k2 == 8 and not infos[5].choice.decays
    assert all(np.isfinite(info.phi).all() for info in infos)
    assert infos[5].estimates == infos[4].estimates == infos[6].estimates - 1


def test_losses_without_weight_are_not_measured():
    loss_fn, params, carry, batch = make(CELLS["elman"], T=24)
    weights = jnp.ones((24, B)).at[15].set(0)
    infos = [
        out.info
        for out in feed(tbptt.adaptive_bptt(loss_fn, 2, (2, 8), 0.9), params, carry, batch._replace(weights=weights), 2)
    ]
    assert infos[7].measured and infos[7].estimates == infos[6].estimates and not infos[7].broken
    np.testing.assert_array_equal(infos[7].phi, infos[6].phi)
    assert infos[8].estimates == infos[6].estimates + 1


def test_resets_end_what_is_left_out():
    """A reset at every 4th step: nothing arrives from more than 4 steps back, and a window of 4 is enough."""
    loss_fn, params, carry, batch = make(CELLS["gru"], T=32)
    resets = jnp.broadcast_to((jnp.arange(32) % 4 == 0)[:, None], (32, B))
    estimator = tbptt.adaptive_bptt(loss_fn, 4, (4, 8, 16), 0.1)
    infos = [out.info for out in feed(estimator, params, carry, batch._replace(resets=resets), 4)]
    assert (infos[-1].phi[:3] > 0).all() and (infos[-1].phi[3:] == 0).all()
    assert infos[-1].choice.decays and infos[-1].choice.absolute[1] == 0 and infos[-1].k2 <= 8


def test_the_program_depends_on_no_size_and_training_takes_it():
    def size(k1, windows, length, lags):
        loss_fn, params, carry, batch = make(CELLS["elman"], T=length)
        estimator = tbptt.adaptive_bptt(loss_fn, k1, windows, 0.5, lags=lags)
        return str(jax.make_jaxpr(estimator.estimate)(params, estimator.init(params, carry, batch), batch)).count(" = ")

    assert abs(size(2, (2, 6, 8), 16, 6) - size(8, (8, 24, 48), 512, 40)) <= 4
    loss_fn, params, carry, batch = make(CELLS["elman"], T=48)
    estimator, optimizer = tbptt.adaptive_bptt(loss_fn, 2, (2, 4, 8), 0.5), optax.sgd(0.1)
    state = tbptt.init_state(estimator, optimizer, params, carry, batch)
    state, metrics = tbptt.make_train_epoch(estimator, optimizer, 4)(state, batch)
    assert (
        metrics.info.k2.shape == (12,)
        and metrics.info.phi.shape == (12, 8)
        and metrics.info.choice.relative.shape == (12, 3)
    )
    assert np.isfinite(metrics.loss).all() and metrics.info.estimates[-1] == 11
