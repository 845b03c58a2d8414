"""Tests of the experiments on synthetic tasks."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from experiments import adding, continual_reber, copy_memory, temporal_order
from experiments.support.common import many_seeds, program
from tbptt import data as tasks


def small_model():
    return many_seeds.Model(tbptt.Elman(2, 3), nn.Dense(1), tbptt.squared_error, 2)


def alone(model, estimator, key, batches):
    """Train one seed in a Python loop; batches: key -> [(batch, whether to reset the carry)]."""
    key_params, key_data = jax.random.split(key)
    optimizer, carry = optax.sgd(0.1), model.cell.initial_carry((model.batch_size,))
    params, losses = (
        jax.jit(lambda key: tbptt.init_params(key, model.cell, model.readout))(key_params),
        [],
    )
    memory, opt_state = carry, optimizer.init(params)

    @jax.jit
    def update(params, opt_state, memory, batch):
        gradient = estimator.estimate(params, memory, batch)
        updates, opt_state = optimizer.update(gradient.grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, gradient.memory, gradient.loss

    for batch, reset in batches(key_data):
        params, opt_state, memory, loss = update(
            params, opt_state, carry if reset else memory, batch
        )
        losses.append(float(loss))
    return params, losses


@pytest.mark.exhaustive
@pytest.mark.parametrize("stream", [False, True])
def test_vmapped_seeds_equal_single_runs(key, stream):
    model = small_model()
    estimator = tbptt.truncated_bptt(model.loss_fn, 4, 2)
    draw = functools.partial(tasks.adding, T=12 if stream else 4, batch_size=2)
    compiled = jax.jit(lambda key: draw(key))

    def independent(key):
        return [(compiled(k), True) for k in jax.random.split(key, 3)]

    def unbroken(key):
        whole = jax.tree.map(np.asarray, compiled(key))
        return [(jax.tree.map(lambda a, i=i: a[i : i + 4], whole), False) for i in (0, 4, 8)]

    keys, test_keys = many_seeds.keys_of(5, 2)
    if stream:  # without its weights, which are 0 except in the last chunk
        params, losses = many_seeds.train_stream(
            model, estimator, optax.sgd(0.1), loss_everywhere(draw), keys, 4
        )
        draw = loss_everywhere(draw)
    else:
        params, losses = many_seeds.train(model, estimator, optax.sgd(0.1), draw, keys, 3)
    for seed in range(2):
        wanted, curve = alone(model, estimator, keys[seed], unbroken if stream else independent)
        np.testing.assert_allclose(losses[seed], curve, rtol=1e-12)
        for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(got[seed], want, rtol=1e-9, atol=1e-12)
    assert (
        np.all(losses[0] != losses[1])
        and len({str(jax.random.key_data(k)) for k in (*keys, *test_keys)}) == 4
    )


def loss_everywhere(draw):
    return lambda key: draw(key)._replace(weights=None)


def test_curves_are_averaged_over_intervals():
    losses = np.asarray([[1.0, 3.0, 5.0, 7.0, 9.0], [2.0, np.nan, 2.0, 4.0, 0.0]])
    thin = many_seeds.thinned(losses, points=2)
    assert thin == {"updates": [2, 4], "losses": [[2.0, 6.0], [None, 3.0]]}


@pytest.mark.exhaustive
def test_an_open_forget_gate_is_the_lstm_without_one(key):
    """The carry follows c' = c + i g, and the gradient of the forget gate is 0."""
    cell = continual_reber.cell(continual_reber.WITHOUT)
    xs = np.random.default_rng(0).normal(size=(9, 7))

    @functools.partial(jax.jit, static_argnums=2)
    def run(params, xs, dtype):
        held = dataclasses.replace(cell, dtype=dtype)

        def total(params):
            carry, ys = tbptt.unroll(held, params, held.initial_carry(), xs)
            return jnp.sum(ys), (carry, ys)

        return jax.value_and_grad(total, has_aux=True)(params)

    params = jax.tree.map(np.asarray, jax.jit(cell.init)(key))
    cast = lambda dtype: jax.tree.map(lambda a: a.astype(dtype), (params, xs))  # noqa: E731
    ((_, (carry, ys)), _), *_ = runs = [
        run(*cast(dtype), dtype) for dtype in (np.float64, np.float32)
    ]
    ys, H, h, c = (
        np.asarray(ys),
        cell.hidden_dim,
        np.zeros(cell.hidden_dim),
        np.zeros(cell.hidden_dim),
    )
    for x in xs:
        a = x @ params.w_x + h @ params.w_h + params.b
        i, g, o = 1 / (1 + np.exp(-a[:H])), np.tanh(a[2 * H : 3 * H]), 1 / (1 + np.exp(-a[3 * H :]))
        c = c + i * g
        h = o * np.tanh(c)
    np.testing.assert_allclose(carry.c, c, rtol=1e-12)
    np.testing.assert_allclose(ys[-1], h, rtol=1e-12)
    for _, grads in runs:
        for leaf in jax.tree.leaves(grads):
            blocks = np.split(np.asarray(leaf), 4, axis=-1)
            assert np.all(blocks[1] == 0) and all(np.any(blocks[k] != 0) for k in (0, 2, 3))


def test_the_shortest_sufficient_window():
    windows = (10, 20, 40)
    for solved, boundary in (
        ([False, True, True], 20), ([True] * 3, 10),
        ([True, False, True], 40), ([True, True, False], None),
    ):  # fmt: skip
        assert adding.fails_below(windows, solved) == boundary


def test_windows_are_on_both_sides_of_the_delay():
    for quick in (False, True):
        pairs = copy_memory.windows_of(30, quick)
        assert all((30 + copy_memory.S) % k1 == 0 for k1, _ in pairs)
        assert min(k2 for _, k2 in pairs) <= 15 < 30 + copy_memory.S == max(k2 for _, k2 in pairs)


SMALL = {
    adding: (
        {"SHORT": 6, "LONG": 8, "TEST": 4, "BATCH": 2},
        {"windows": (2, 8), "updates": 3, "long_updates": 3, "long_seeds": 2},
    ),
    copy_memory: (
        {"S": 2, "A": 2, "TEST": 4, "BATCH": 2, "windows_of": lambda delay, quick: [(6, 2)]},
        {
            "delays": (4,),
            "window_delay": 4,
            "updates": 3,
            "window_updates": 3,
            "window_seeds": 2,
            "hidden": 3,
        },
    ),
    temporal_order: ({"TEST": 4, "BATCH": 2}, {"updates": 3}),
    continual_reber: ({"CHUNK": 6}, {"windows": (), "updates": 3}),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__.rsplit(".", 1)[-1])
def test_a_small_run_of_an_experiment_computes_its_targets(module, tmp_path, monkeypatch):
    constants, flags = SMALL[module]
    for name, value in constants.items():
        monkeypatch.setattr(module, name, value)
    summary = program.execute(module, module.Config(seeds=2, out=tmp_path / "run", **flags))
    saved = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert saved["expected"].keys() == saved["measured"].keys() and len(saved["expected"]) >= 2
    assert (
        saved["reached"] == all(row["reached"] for row in saved["targets"])
        and not saved["standard"]
    )
    assert saved["seeds"] == 2 and any(len(numbers) == 2 for numbers in saved["measured"].values())
    undefined = {what for what, numbers in saved["measured"].items() if None in numbers}
    # No window suffices after three updates.
    assert all("shortest sufficient" in what for what in undefined)
    assert [(tmp_path / "run" / name).stat().st_size > 10_000 for name in summary["figures"]] == [
        True
    ]
