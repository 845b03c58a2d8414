"""Adaptive BPTT call by call: TBPTT with the window of that call exactly, and what is measured when."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tests import oracle
from tests.test_estimators import CELLS, B, make, own_loss, run


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
