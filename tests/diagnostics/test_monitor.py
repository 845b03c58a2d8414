"""Diagnostics inside the train step return correct values and change nothing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import LSTM, Elman, Stack
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
from tbptt.losses.sequence import sequence_loss, squared_error
from tbptt.training import init_state, make_train_epoch
from tbptt.types import Batch
from tbptt.unroll import unroll
from tests.support.sequences import sequence_params, steps_of, zero_carry

T, B, D, H = 12, 2, 2, 3
CELL, READOUT = Stack((Elman(D, H), Elman(H, H))), nn.Dense(1, param_dtype=jnp.float64)
LOSS = sequence_loss(CELL, READOUT, squared_error)
PROBES = {"norms": norms_by_layer, "leaves": norms_by_leaf, "bad": bad_leaf}
CARRY = zero_carry(CELL, (B,))
XS = 3 * np.random.default_rng(1).normal(size=(T, B, D))
BATCH = Batch(XS, np.cumsum(XS[..., :1], axis=0) / 3)


@pytest.fixture
def params():
    return sequence_params(CELL, READOUT, shift=0.1)


def assert_same(got, want, tol=1e-12):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol), got, want)


saturated = jax.jit(functools.partial(saturation, CELL), static_argnames="flat")


@pytest.mark.parametrize("k2", [4, pytest.param(9, marks=pytest.mark.exhaustive)])
def test_a_monitored_epoch_equals_a_plain_one(k2, params):
    sgd, estimator = optax.sgd(1e-2), truncated_bptt(LOSS, 4, k2)

    def trained(estimator):
        state = jax.jit(lambda p: init_state(estimator, sgd, p, CARRY, BATCH))(params)
        return make_train_epoch(estimator, sgd, 4)(state, BATCH)

    probes = PROBES | {"gates": saturation_probe(CELL)}
    plain, monitored_run = trained(estimator), trained(monitored(estimator, probes))
    assert_same(plain[0], monitored_run[0], 0)
    found = monitored_run[1].info
    assert isinstance(found, MonitoredInfo)
    assert_same(found.inner, plain[1].info, 0)
    assert_same(plain[1]._replace(info=None), monitored_run[1]._replace(info=None), 0)
    found = jax.tree.map(np.asarray, found)
    assert (
        found.probes["gates"]["0.h"].flat.shape == found.probes["norms"][".cell[1]"].shape == (3,)
    )
    total = np.sqrt(sum(n**2 for n in found.probes["norms"].values()))
    assert_same(
        (total, total),
        (monitored_run[1].grad_norm, np.sqrt(sum(n**2 for n in found.probes["leaves"].values()))),
    )
    assert found.probes["bad"].tolist() == [-1] * 3


def test_norms_by_leaf_and_layer_and_bad_leaf_and_gates_of_the_first_steps(params):
    probes = PROBES | {"gates": saturation_probe(CELL, steps=4, flat=0.4)}

    @jax.jit
    def both(params, carry, batch):
        gradient = monitored(full_bptt(LOSS), probes).estimate(params, carry, batch)
        tiny = gradient._replace(
            grads=jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-30, jnp.float32), gradient.grads)
        )
        return gradient, norms_by_leaf(params, None, batch, tiny)

    resets, mask = np.zeros((T, B), bool), np.ones((T, B), bool)
    resets[1], mask[2:4] = True, False  # of the first 4 steps, the gates of two count
    carry, batch = zero_carry(CELL, (B,), 0.3), BATCH._replace(resets=resets, mask=mask)
    gradient, tiny = jax.tree.map(np.asarray, both(params, carry, batch))
    info, g = gradient.info.probes, gradient.grads
    assert list(info["norms"]) == [".cell[0]", ".cell[1]", ".readout['params']"]
    assert_same(info["norms"][".cell[1]"], np.sqrt(sum(np.sum(leaf**2) for leaf in g.cell[1])))
    assert_same(info["leaves"][".cell[0].w_h"], np.linalg.norm(g.cell[0].w_h))
    assert len(info["leaves"]) == len(jax.tree.leaves(params)) and info["bad"] == -1
    np.testing.assert_allclose(
        tiny[".cell[1].w_h"], 3e-30, rtol=1e-6
    )  # 9 entries whose squares underflow
    bad = both(params, carry, batch._replace(targets=batch.targets * np.nan))[0].info.probes["bad"]
    assert leaf_name(params, bad) == ".cell[0].w_h"
    assert_same(info["gates"], saturated(params.cell, carry, XS[:2], resets=resets[:2], flat=0.4))
    assert max(float(s.flat) for s in info["gates"].values()) > 0


@pytest.mark.exhaustive
def test_saturation_probe_of_overlapping_windows_uses_the_steps_their_carry_enters(params):
    estimator = monitored(truncated_bptt(LOSS, 2, 5), {"gates": saturation_probe(CELL, steps=2)})
    memory = jax.jit(lambda p: estimator.init(p, CARRY, BATCH))(params)
    estimate, step = jax.jit(estimator.estimate), jax.jit(CELL)
    entering = [CARRY]
    for x in XS:
        entering.append(step(params.cell, entering[-1], x)[0])
    for begin in range(0, T, 2):
        gradient = estimate(params, memory, steps_of(BATCH, begin, begin + 2))
        memory = gradient.memory
        oldest = max(0, begin - 3)  # k2 - k1 steps are remembered
        assert_same(
            gradient.info.probes["gates"],
            saturated(params.cell, entering[oldest], XS[oldest : oldest + 2]),
        )


def test_embedded_symbols_and_bare_parameters():
    cell, embedding = Elman(4, 3), nn.Embed(5, 4, param_dtype=jnp.float64)
    loss = sequence_loss(cell, READOUT, squared_error, embedding=embedding)
    params, carry = sequence_params(cell, READOUT, embedding), zero_carry(cell, (B,))
    symbols = np.random.default_rng(1).integers(0, 5, (6, B))
    probe = saturation_probe(cell, xs_of=lambda p, b: embedding.apply(p.embedding, b.inputs))
    batch = Batch(symbols, np.zeros((6, B, 1)))
    found = jax.jit(monitored(full_bptt(loss), {"gates": probe}).estimate)(
        params, carry, batch
    ).info.probes
    xs = params.embedding["params"]["embedding"][symbols]
    assert_same(
        found["gates"], jax.jit(functools.partial(saturation, cell))(params.cell, carry, xs[:1])
    )

    def own(params, carry, batch):
        carry, ys = unroll(cell, params, carry, batch.inputs)
        return jnp.sum(ys), carry

    probe = saturation_probe(cell, steps=1, cell_params=lambda p: p)
    bare = jax.eval_shape(
        monitored(full_bptt(own), {"gates": probe}).estimate, params.cell, carry, Batch(xs, None)
    )
    assert "h" in bare.info.probes["gates"]


def test_errors(params):
    def estimate(probe):
        return jax.eval_shape(
            monitored(full_bptt(LOSS), {"mine": probe}).estimate, params, CARRY, BATCH
        )

    with pytest.raises(
        ValueError, match=r"probe 'mine' must return scalars; got shape \(12, 2, 2\) at \['xs'\]"
    ):
        estimate(lambda params, memory, batch, gradient: {"xs": batch.inputs})
    for steps in (0, T + 1):
        with pytest.raises(
            ValueError, match=rf"needs 1 <= steps <= T of the batch; got steps={steps}, T=12"
        ):
            estimate(saturation_probe(CELL, steps=steps))
    with pytest.raises(ValueError, match="needs the carry .* Pass carry_of=lambda memory"):
        estimate(saturation_probe(LSTM(D, H)))
