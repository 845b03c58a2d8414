"""Adaptive BPTT call by call: it equals TBPTT with the window of that call; when it measures."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tests.support import oracle
from tests.support.estimating import CELLS, B, make, own_loss, own_problem

# One program for five tests.
WINDOWS = (1, 7)
EACH = tbptt.adaptive_bptt(own_loss, 2, WINDOWS, 0.9, lags=8, tau=3, smoothing=0.0)


@functools.cache
def compiled(estimator):
    return jax.jit(estimator.init), jax.jit(estimator.estimate)


def linear_problem(a, steps):
    xs = np.random.default_rng(0).normal(size=(steps, B, 1))
    return {"a": jnp.asarray(np.float64(a))}, jnp.asarray(np.zeros(B)), tbptt.Batch(xs, xs)


def linear_loss(params, carry, batch):
    """h' = a h + x, L = h: phi_k = |a|^k exactly."""

    def body(h, x):
        h = params["a"] * h + x[..., 0]
        return h, jnp.sum(h)

    carry, losses = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(losses), carry


LINEAR = tbptt.adaptive_bptt(linear_loss, 2, (2, 6, 12), 0.5, losses=3, lags=10, tau=4)


def test_a_linear_cell_gives_its_own_beta():
    for a in (0.5, -0.9, 0.999, 1.1):
        (out,) = feed(LINEAR, *linear_problem(a, 24), 24)
        info = out.info
        np.testing.assert_allclose(info.phi, abs(a) ** np.arange(1, 11), rtol=1e-12)
        np.testing.assert_allclose(info.choice.beta, abs(a), rtol=1e-11)
        assert bool(info.choice.decays) == (abs(a) < 1) and info.measured and info.estimates == 1
        assert info.k2 == 12 and (abs(a) < 1 or info.next_k2 == 12)


def feed(estimator, params, carry, batch, segment, lr=0.0, force=None):
    """Estimate on segments of the stream, with SGD in between; yield outputs as numpy arrays."""
    init, estimate = compiled(estimator)
    batch, memory = jax.tree.map(np.asarray, batch), init(params, carry, batch)
    before = estimate._cache_size()
    for i, start in enumerate(range(0, len(batch.inputs), segment)):
        if force is not None:
            chosen = jnp.asarray(np.int32(force[i % len(force)]))
            memory = memory._replace(choice=memory.choice._replace(chosen=chosen))
        out = estimate(params, memory, oracle.part(batch, start, start + segment))
        yield jax.device_get(out)
        memory, params = out.memory, stepped(params, out.grads, lr)
    assert estimate._cache_size() <= before + 1  # switching compiles nothing


def stepped(params, grads, lr):
    return jax.tree.map(
        lambda p, g: jnp.asarray(np.asarray(p) - lr * np.asarray(g)) if lr else p, params, grads
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name, k1, k2, segment",
    [
        ("own", 3, 2, 6),
        ("elman", 2, 5, 2),
        ("own", 4, 40, 4),
    ],
)
def test_a_single_window_is_truncated_bptt_exactly(name, k1, k2, segment):
    loss_fn, params, carry, batch = (
        own_problem("weights resets") if name == "own" else make(CELLS[name], "all")
    )
    got = feed(
        tbptt.adaptive_bptt(loss_fn, k1, (k2,), 0.5, lags=5, tau=2),
        params,
        carry,
        batch,
        segment,
        lr=0.3,
    )
    want = feed(tbptt.truncated_bptt(loss_fn, k1, k2), params, carry, batch, segment, lr=0.3)
    for a, b in zip(got, want, strict=True):
        chex.assert_trees_all_close(a[:2], b[:2], rtol=1e-10, atol=1e-14)
        chex.assert_trees_all_close((a.info.losses, a.info.weights), tuple(b.info), rtol=1e-12)
        assert a.info.k2 == k2 == a.info.next_k2


@pytest.mark.parametrize(
    "windows, segment", [(WINDOWS, 2), pytest.param((1, 2, 3, 10), 4, marks=pytest.mark.exhaustive)]
)
def test_switching_in_mid_stream_is_truncated_bptt_with_the_window_of_that_call(windows, segment):
    """With updates: each call equals TBPTT(k1, k2) with the same stream and parameters."""
    k1, order, lr = 2, [i for i in (4, 0, 3, 1, 2, 4, 2, 3, 0) if i < len(windows)], 0.3
    # The carry has an integer counter, which has no cotangent.
    loss_fn, params, carry, batch = own_problem("weights resets", T=32)
    resets = np.array(batch.resets)
    resets[:, 0] = False  # so that a gradient reaches every lag in this row
    batch, adaptive = batch._replace(resets=resets), EACH
    if windows != WINDOWS:
        adaptive = tbptt.adaptive_bptt(loss_fn, k1, windows, 0.5, lags=8, tau=3)
    others = [tbptt.truncated_bptt(loss_fn, k1, k2) for k2 in windows]
    estimates = jax.jit(
        lambda p, memories, b: [e.estimate(p, m, b) for e, m in zip(others, memories, strict=True)]
    )
    memories = jax.jit(lambda *given: [other.init(*given) for other in others])(
        params, carry, batch
    )
    numpy_batch = jax.tree.map(np.asarray, batch)
    for i, out in enumerate(feed(adaptive, params, carry, batch, segment, lr, force=order)):
        every = estimates(
            params, memories, oracle.part(numpy_batch, i * segment, (i + 1) * segment)
        )
        which = order[i % len(order)]
        chex.assert_trees_all_close(out[:2], every[which][:2], rtol=1e-9, atol=1e-13)
        assert out.info.k2 == windows[which]
        memories, params = [one.memory for one in every], stepped(params, out.grads, lr)
        entering = out.memory.replay.carries[0]  # of the next call
        assert entering["n"] == segment * (i + 1)
        assert out.info.estimates == 0 or (out.info.phi > 0).all()
    assert out.info.estimates >= 3


@pytest.mark.exhaustive
def test_the_window_shrinks_for_a_short_memory_and_remains_for_a_long_one():
    estimator = tbptt.adaptive_bptt(linear_loss, 2, (2, 4, 8, 16, 32), 0.1)
    for a, last in [(0.3, 4), (0.8, 16), (0.98, 32), (1.02, 32)]:
        params, carry, batch = linear_problem(a, 60)
        infos = [
            out.info
            for out in feed(estimator, params, carry, batch._replace(inputs=1 + batch.inputs), 2)
        ]
        assert all(info.k2 == 32 for info in infos[:16]) and not any(
            info.measured for info in infos[:15]
        )  # too few stored steps
        assert infos[-1].k2 == last, (a, infos[-1])
        assert [int(info.next_k2) for info in infos[:-1]] == [int(info.k2) for info in infos[1:]]
    assert infos[-1].choice.beta == pytest.approx(1.02) and not infos[-1].choice.decays


def own_stream(T, **flags):
    """Return params, carry and a batch of `own_loss` that has weights 1 and no resets."""
    _, params, carry, batch = own_problem(T=T)
    flags = {"weights": np.ones((T, B)), "resets": np.zeros((T, B), bool)} | flags
    return params, carry, batch._replace(**flags)


def test_estimates_come_every_so_many_calls_and_are_smoothed():
    smooth = tbptt.adaptive_bptt(own_loss, 2, (7,), 0.1, lags=8, tau=3, every=3, smoothing=0.8)
    problem = own_stream(40)
    newest = [out.info.phi for out in feed(EACH, *problem, 2)]
    infos = [out.info for out in feed(smooth, *problem, 2)]
    assert [bool(info.measured) for info in infos] == [
        i in (3, 6, 9, 12, 15, 18) for i in range(20)
    ]
    assert infos[-1].estimates == 6
    mean = newest[3]
    for n, i in enumerate((3, 6, 9, 12, 15, 18)):
        mean = mean + max(0.2, 1 / (n + 1)) * (newest[i] - mean)
        for info in infos[i : i + 3]:
            np.testing.assert_allclose(info.phi, mean, rtol=1e-10)
    assert np.std(newest[3:], axis=0).max() > 1e-3 * np.max(newest[3:])


def test_non_finite_estimates_are_ignored_and_reported():
    params, carry, batch = own_stream(24)
    targets = np.array(batch.targets)
    targets[11, 0, 0] = np.inf
    infos = [out.info for out in feed(EACH, params, carry, batch._replace(targets=targets), 2)]
    assert [bool(info.non_finite) for info in infos] == [i == 5 for i in range(12)]
    assert infos[5].next_k2 == 7 and not infos[5].choice.decays
    assert all(np.isfinite(info.phi).all() for info in infos)
    assert infos[5].estimates == infos[4].estimates == infos[6].estimates - 1


def test_losses_without_weight_are_not_measured():
    weights = np.ones((24, B))
    weights[15] = 0
    infos = [out.info for out in feed(EACH, *own_stream(24, weights=weights), 2)]
    assert (
        infos[7].measured and infos[7].estimates == infos[6].estimates and not infos[7].non_finite
    )
    np.testing.assert_array_equal(infos[7].phi, infos[6].phi)
    assert infos[8].estimates == infos[6].estimates + 1


def test_resets_end_the_decay():
    """With a reset at every 4th step, no gradient spans more than 4 steps."""
    resets = np.broadcast_to((np.arange(32) % 4 == 0)[:, None], (32, B))
    infos = [out.info for out in feed(EACH, *own_stream(32, resets=resets), 2)]
    assert (infos[-1].phi[:3] > 0).all() and (infos[-1].phi[3:] == 0).all()
    assert infos[-1].choice.decays and infos[-1].choice.absolute[1] == 0 and infos[-1].k2 <= 7


def test_the_program_depends_on_no_size():
    def size(estimator, length):
        params, carry, batch = linear_problem(0.5, length)
        init, estimate = compiled(estimator)  # another test traced the small one already
        memory = jax.eval_shape(init, params, carry, batch)
        return str(jax.make_jaxpr(estimate)(params, memory, batch)).count(" = ")

    windows, lags = (8, 24, 48), 40
    large = tbptt.adaptive_bptt(linear_loss, 8, windows, 0.5, losses=3, lags=lags, tau=20)
    assert abs(size(LINEAR, 24) - size(large, 512)) <= 4


@pytest.mark.exhaustive
def test_training_works_with_it():
    loss_fn, *problem = own_problem(T=48)
    estimator, optimizer = tbptt.adaptive_bptt(loss_fn, 2, (2, 8), 0.5), optax.sgd(0.1)
    state = jax.jit(lambda *problem: tbptt.init_state(estimator, optimizer, *problem))(*problem)
    state, metrics = tbptt.make_train_epoch(estimator, optimizer, 4)(state, problem[2])
    metrics = jax.device_get(metrics)
    assert metrics.info.k2.shape == (12,) and metrics.info.phi.shape == (12, 8)
    assert metrics.info.choice.relative.shape == (12, 2)
    assert np.isfinite(metrics.loss).all() and metrics.info.estimates[-1] == 11
