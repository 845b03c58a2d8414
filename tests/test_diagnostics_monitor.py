"""Diagnostics inside the train step: they see what is there, and change nothing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import GRU, LSTM, Stack
from tbptt.diagnostics import (
    MonitoredInfo,
    bad_leaf,
    leaf_name,
    monitored,
    norms_by_layer,
    norms_by_leaf,
    saturation,
    saturation_probe,
)
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.objectives import init_params, sequence_loss, squared_error
from tbptt.training import init_state, make_train_epoch, make_train_step
from tbptt.types import Batch
from tbptt.unroll import unroll

T, B, D, H = 12, 2, 2, 3
CELL, READOUT = Stack((LSTM(D, H), GRU(H, H))), nn.Dense(1, param_dtype=jnp.float64)
LOSS = sequence_loss(CELL, READOUT, squared_error)
PROBES = {"norms": norms_by_layer, "leaves": norms_by_leaf, "bad": bad_leaf, "gates": saturation_probe(CELL)}
ESTIMATORS = {
    "full": full_bptt,
    "disjoint": functools.partial(truncated_bptt, k1=4, k2=4),
    "overlapping": functools.partial(truncated_bptt, k1=4, k2=9),
}
each_estimator = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.fixture
def params(key):
    return jax.tree.map(lambda p: p + 0.1, init_params(key, CELL, READOUT))


@pytest.fixture
def batch():
    xs = 3 * jax.random.normal(jax.random.key(1), (T, B, D))
    return Batch(xs, jnp.cumsum(xs[..., :1], axis=0) / 3)


def assert_same(got, want, tol=1e-12):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol), got, want)


@each_estimator
def test_the_monitored_epoch_learns_what_the_plain_one_does(make, params, batch):
    plain, watching = make(LOSS), monitored(make(LOSS), PROBES)
    ends = {}
    for estimator in (plain, watching):
        state = init_state(estimator, optax.adam(1e-2), params, CELL.initial_carry((B,)), batch)
        ends[estimator] = make_train_epoch(estimator, optax.adam(1e-2), 4)(state, batch)
    assert_same(ends[plain][0], ends[watching][0], 0)
    seen = ends[watching][1].info
    assert isinstance(seen, MonitoredInfo)
    assert_same(seen.inner, ends[plain][1].info, 0)
    assert_same(ends[plain][1]._replace(info=None), ends[watching][1]._replace(info=None), 0)
    assert seen.probes["gates"]["0.f"].flat.shape == seen.probes["norms"][".cell[1]"].shape == (3,)
    total = jnp.sqrt(sum(n**2 for n in seen.probes["norms"].values()))
    assert_same((total, total), (ends[watching][1].grad_norm, jnp.sqrt(sum(n**2 for n in seen.probes["leaves"].values()))))
    assert seen.probes["bad"].tolist() == [-1] * 3


def test_norms_are_named_and_counted(params, batch):
    estimator = full_bptt(LOSS)
    gradient = jax.jit(estimator.estimate)(params, CELL.initial_carry((B,)), batch)
    info = jax.jit(monitored(estimator, PROBES).estimate)(params, CELL.initial_carry((B,)), batch).info.probes
    g = gradient.grads
    assert list(info["norms"]) == [".cell[0]", ".cell[1]", ".readout['params']"]
    assert_same(info["norms"][".cell[1]"], jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in g.cell[1])))
    assert_same(info["leaves"][".cell[0].w_h"], jnp.linalg.norm(g.cell[0].w_h))
    assert len(info["leaves"]) == len(jax.tree.leaves(params))
    tiny = gradient._replace(grads=jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-30, jnp.float32), g))
    norms = norms_by_leaf(params, None, batch, tiny)
    np.testing.assert_allclose(norms[".cell[1].b"], 3e-30, rtol=1e-6)  # 9 entries; squared they would be 0


def test_saturation_is_that_of_the_first_steps_of_the_chunk(params, batch):
    estimator = monitored(full_bptt(LOSS), {"gates": saturation_probe(CELL, steps=3, flat=0.4)})
    estimate = jax.jit(estimator.estimate)
    first = estimate(params, CELL.initial_carry((B,)), jax.tree.map(lambda a: a[:4], batch))
    second = estimate(params, first.memory, jax.tree.map(lambda a: a[4:], batch)).info.probes["gates"]
    carry, _ = unroll(CELL, params.cell, CELL.initial_carry((B,)), batch.inputs[:4])
    assert_same(second, saturation(CELL, params.cell, carry, batch.inputs[4:7], flat=0.4))
    assert max(float(s.flat) for s in second.values()) > 0
    moved = saturation(CELL, params.cell, CELL.initial_carry((B,)), batch.inputs[4:7], flat=0.4)
    assert abs(float(moved["0.f"].slope - second["0.f"].slope)) > 1e-6


def test_overlapping_windows_show_the_steps_that_their_carry_enters(params, batch):
    estimator = monitored(truncated_bptt(LOSS, 2, 5), {"gates": saturation_probe(CELL, steps=2)})
    memory = estimator.init(params, CELL.initial_carry((B,)), batch)
    estimate, look, step = jax.jit(estimator.estimate), jax.jit(functools.partial(saturation, CELL)), jax.jit(CELL)
    entering = [CELL.initial_carry((B,))]
    for x in batch.inputs:
        entering.append(step(params.cell, entering[-1], x)[0])
    for begin in range(0, T, 2):
        gradient = estimate(params, memory, jax.tree.map(lambda a, t=begin: a[t : t + 2], batch))
        memory = gradient.memory
        oldest = max(0, begin - 3)  # k2 - k1 steps are remembered
        assert_same(gradient.info.probes["gates"], look(params.cell, entering[oldest], batch.inputs[oldest : oldest + 2]))


def test_resets_and_masks_of_the_batch_are_followed(params, batch):
    resets = jnp.zeros((T, B), bool).at[1].set(True)
    estimator = monitored(full_bptt(LOSS), {"gates": saturation_probe(CELL, steps=4)})
    carry = jax.tree.map(lambda leaf: leaf + 0.3, CELL.initial_carry((B,)))
    mask = jnp.ones((T, B), bool).at[2:].set(False)
    seen = jax.jit(estimator.estimate)(params, carry, batch._replace(resets=resets, mask=mask)).info.probes["gates"]
    want = saturation(CELL, params.cell, carry, batch.inputs[:2], resets=resets[:2])
    assert_same(seen, want)


def test_embedded_symbols_and_bare_parameters():
    cell, embedding = LSTM(4, 3), nn.Embed(5, 4, param_dtype=jnp.float64)
    loss = sequence_loss(cell, READOUT, squared_error, embedding=embedding)
    params = init_params(jax.random.key(0), cell, READOUT, embedding)
    symbols = jax.random.randint(jax.random.key(1), (6, B), 0, 5)
    probe = saturation_probe(cell, xs_of=lambda p, b: embedding.apply(p.embedding, b.inputs))
    batch = Batch(symbols, jnp.zeros((6, B, 1)))
    seen = jax.jit(monitored(full_bptt(loss), {"gates": probe}).estimate)(
        params, cell.initial_carry((B,)), batch
    ).info.probes
    xs = embedding.apply(params.embedding, symbols)
    assert_same(seen["gates"], saturation(cell, params.cell, cell.initial_carry((B,)), xs[:1]))

    def own(params, carry, batch):
        carry, ys = unroll(cell, params, carry, batch.inputs)
        return jnp.sum(ys), carry

    probe = saturation_probe(cell, steps=1, cell_params=lambda p: p)
    estimator = monitored(full_bptt(own), {"gates": probe})
    batch = Batch(xs, None)
    assert "f" in estimator.estimate(params.cell, cell.initial_carry((B,)), batch).info.probes["gates"]


def test_bad_leaf_is_named(params, batch):
    bad = batch._replace(targets=batch.targets * jnp.nan)
    estimator = monitored(full_bptt(LOSS), {"bad": bad_leaf})
    step = make_train_step(estimator, optax.sgd(0.0))
    _, metrics = step(init_state(estimator, optax.sgd(0.0), params, CELL.initial_carry((B,)), batch), bad)
    assert leaf_name(params, metrics.info.probes["bad"]) == ".cell[0].w_x"


def test_misuse_is_named(params, batch):
    carry = CELL.initial_carry((B,))

    def estimate(probe, memory=carry):
        inner = full_bptt(LOSS)
        return monitored(inner, {"mine": probe}).estimate(params, memory, batch)

    with pytest.raises(ValueError, match=r"probe 'mine' must return scalars; got shape \(12, 2, 2\) at \['xs'\]"):
        estimate(lambda params, memory, batch, gradient: {"xs": batch.inputs})
    for steps in (0, T + 1):
        with pytest.raises(ValueError, match=rf"needs 1 <= steps <= T of the batch; got steps={steps}, T=12"):
            estimate(saturation_probe(CELL, steps=steps))
    with pytest.raises(ValueError, match="needs the carry .* give carry_of=lambda memory"):
        estimate(saturation_probe(LSTM(D, H)))
