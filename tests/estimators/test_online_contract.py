"""Properties of every online estimator."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tbptt.diagnostics import estimator_bias
from tests.estimators.test_online import (
    ALL,
    T,
    each_estimator,
    full,
    in_segments,
    part,
    relative_error,
    same,
)
from tests.support.estimating import own_problem

exhaustive = pytest.mark.exhaustive


def equations(jaxpr):
    inside = [
        getattr(leaf, "jaxpr", leaf)
        for eqn in jaxpr.eqns
        for leaf in jax.tree.leaves(list(eqn.params.values()))
    ]
    return len(jaxpr.eqns) + sum(equations(part) for part in inside if hasattr(part, "eqns"))


@each_estimator
def test_memory_and_program_do_not_grow_with_T_and_float32_stays_float32(factory):
    loss_fn, *point = own_problem("weights resets")
    narrow = lambda a: jnp.float32 if a.dtype == jnp.float64 else a.dtype  # noqa: E731
    params, carry, batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, narrow(a)), tuple(point)
    )
    estimator, key = factory(loss_fn), jax.random.key(0)

    def sizes(steps):
        segment = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((steps, *a.shape[1:]), a.dtype), batch
        )
        memory = jax.eval_shape(estimator.init, params, carry, segment)
        trace = jax.make_jaxpr(estimator.estimate, return_shape=True)
        traced, out = trace(params, memory, segment, key)
        chex.assert_trees_all_equal_shapes_and_dtypes(out.memory, memory)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves((out.loss, out.grads, out.memory))}
        assert dtypes == {  # the carry's counter alone is an integer
            jnp.dtype(jnp.float32),
            jnp.dtype(jnp.int32),
        }
        return equations(traced.jaxpr), memory

    (short, a), (long, b) = sizes(3), sizes(40)
    assert short == long > 100
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)


@pytest.mark.parametrize(
    "factory",
    [
        ALL["snap"],
        *(pytest.param(ALL[name], marks=exhaustive) for name in ("rtrl", "uoro")),
    ],
)
def test_works_inside_jit_scan_and_a_train_epoch(factory):
    loss_fn, params, carry, batch = own_problem("weights", T)
    estimator, optimizer = factory(loss_fn), optax.sgd(0.05)

    @jax.jit
    def everything(params, carry, batch):  # all is traced; the sparsity is found from shapes
        state = tbptt.init_state(estimator, optimizer, params, carry, batch, key=jax.random.key(0))
        return tbptt.make_train_epoch(estimator, optimizer, 1)(state, batch)

    state, metrics = everything(params, carry, batch)
    state_, memory = jax.device_get(params), jax.jit(estimator.init)(params, carry, batch)
    if factory is not tbptt.uoro:  # uoro: the keys that an epoch draws are not public
        estimate = jax.jit(estimator.estimate)
        for t in range(T):
            out = estimate(state_, memory, part(batch, t, t + 1))
            memory, state_ = (
                out.memory,
                jax.tree.map(lambda p, g: p - 0.05 * np.asarray(g), state_, out.grads),
            )
        same(state.params, state_)
    chex.assert_tree_all_finite((state.params, metrics))
    assert relative_error(params, state.params) > 1e-3


@pytest.mark.parametrize("name", ["rtrl", pytest.param("uoro", marks=exhaustive)])
def test_estimator_bias_measures_online_estimators(name):
    loss_fn, params, carry, batch = own_problem("weights resets")
    reference, key = tbptt.full_bptt(loss_fn), jax.random.key(0) if name == "uoro" else None

    @jax.jit
    def measure(*point):
        return estimator_bias(ALL[name](loss_fn), reference, *point, segment=2, key=key)

    found = measure(params, carry, batch)
    assert found.variance > 0 if name == "uoro" else found.bias.relative_error < 1e-12


def counting_loss(params, carry, batch):
    """A loss whose carry has a counter and a key, which drive the recurrence."""

    def body(carry, x):
        h, t, key = carry
        key, use = jax.random.split(key)
        h = jnp.tanh(h @ params["w"] + x * (t % 2) + 0.1 * jax.random.normal(use, h.shape))
        return (h, t + 1, key), jnp.sum(h**2)

    carry, losses = jax.lax.scan(body, carry, batch.inputs)
    return jnp.sum(losses), carry


@pytest.mark.parametrize(
    "factory",
    [
        tbptt.estimators.sparse_rtrl,
        pytest.param(tbptt.uoro, marks=exhaustive),
    ],
)
def test_counters_and_keys_in_a_carry_are_updated(factory):
    params, batch = (
        {"w": np.random.default_rng(1).normal(size=(3, 3))},
        tbptt.Batch(np.ones((6, 1)), np.zeros((6, 1))),
    )
    carry = (0.2 * np.arange(3.0), np.zeros((), int), jax.random.key(7))
    want = full(counting_loss, params, carry, batch)
    grads, out = in_segments(factory(counting_loss), params, carry, batch, 2, jax.random.key(0))
    assert out.memory.carry[1] == 6 and out.memory.carry[2] == want.memory[2]
    if factory is not tbptt.uoro:
        same(grads, want.grads)
