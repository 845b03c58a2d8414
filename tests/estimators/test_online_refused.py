"""Errors of online estimators."""

import functools

import jax
import jax.numpy as jnp
import pytest

import tbptt
from tbptt.estimators.online import common
from tests.estimators.test_online import (
    ALL,
    CELLS,
    B,
    each_estimator,
    full,
    in_segments,
    problem,
    same,
)
from tests.support.estimating import READOUT, raveled


@each_estimator
def test_a_loss_function_without_a_forward_derivative_is_refused_at_init(factory):
    cell = tbptt.ClippedCell(CELLS["elman"], 1.0)
    _, params, carry, batch = problem(CELLS["elman"])
    clipped = tbptt.sequence_loss(cell, READOUT, tbptt.squared_error)
    with pytest.raises(
        TypeError, match=r"loss_fn contains a jax\.custom_vjp.*jax\.jvp.*plain_unroll"
    ):
        factory(clipped).init(params, carry, batch)

    def with_callback(params, carry, batch):
        loss, carry = problem(CELLS["elman"])[0](params, carry, batch)
        return jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct((), loss.dtype), loss), carry

    with pytest.raises(
        TypeError, match=r"with_callback has no forward derivative \(jax\.jvp\).*plain_unroll"
    ):
        factory(with_callback).init(params, carry, batch)


@each_estimator
def test_misuse_is_named(factory):
    loss_fn, params, carry, batch = problem(CELLS["elman"])
    with pytest.raises(TypeError, match=r"params\['n'\] must be floating.*int"):
        factory(lambda p, c, b: loss_fn(p["p"], c, b)).init(
            {"n": jnp.zeros((), int), "p": params}, carry, batch
        )
    with pytest.raises(TypeError, match=r"carry.* is complex.*real.*imaginary"):
        factory(lambda p, c, b: (jnp.sum(jnp.abs(c)), c)).init(
            params, jnp.ones((3, 2), complex), batch
        )
    estimator = factory(lambda p, c, b: loss_fn(p, c, b)[0])
    with pytest.raises(TypeError, match=r"<lambda> must return a pair"):
        estimator.init(params, carry, batch)


def test_uoro_needs_a_key_and_snap_a_number():
    loss_fn, params, carry, batch = problem(CELLS["elman"])
    estimator = tbptt.uoro(loss_fn)
    with pytest.raises(
        ValueError,
        match=r"uoro draws random signs.*needs a key; got None.*init_state\(\.\.\., key=",
    ):
        estimator.estimate(params, jax.eval_shape(estimator.init, params, carry, batch), batch)
    snap = getattr(tbptt.snap, "__wrapped__", tbptt.snap)
    with pytest.raises(ValueError, match="n must be at least 1"):
        snap(loss_fn, 0)
    with pytest.raises(TypeError, match="n must be a Python int"):
        snap(loss_fn, 1.0)


def test_influences_that_do_not_fit_into_memory_are_refused_from_shapes(monkeypatch):
    """By shapes alone: three times the influences of this LSTM are 26 terabytes."""
    cell = tbptt.LSTM(512, 512, dtype=jnp.float32)
    loss_fn = tbptt.sequence_loss(cell, READOUT, tbptt.squared_error)
    params = jax.eval_shape(lambda: tbptt.init_params(jax.random.key(0), cell, READOUT))
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    batch = jax.eval_shape(lambda: tbptt.Batch(zeros((4, 1000, 512)), zeros((4, 1000, 2))))
    carry = jax.eval_shape(lambda: cell.initial_carry((1000,)))
    P, numbers = 4 * 512 * (512 + 512 + 1) + 2 * 513, 2 * 512 * 1000
    fitting = (
        rf"{P:,} parameters on a carry of {numbers:,} numbers.* need {3 * 4 * P * numbers:,} bytes"
    )
    with pytest.raises(
        ValueError,
        match=rf"rtrl's influences of {fitting}; this device has [\d,]+\. Use snap.*uoro",
    ):
        jax.eval_shape(tbptt.rtrl(loss_fn).init, params, carry, batch)
    jax.eval_shape(tbptt.uoro(loss_fn).init, params, carry, batch)

    loss_fn, params, carry, batch = problem(CELLS["lstm"])
    need = 3 * 8 * raveled(params)[0].size * 6 * B  # three arrays of float64
    tbptt.rtrl(loss_fn, max_bytes=need).init(params, carry, batch)
    with pytest.raises(ValueError, match=rf"need {need:,} bytes; max_bytes allows {need - 1:,}"):
        tbptt.rtrl(loss_fn, max_bytes=need - 1).init(params, carry, batch)
    for factory in (tbptt.estimators.sparse_rtrl, ALL["snap"]):
        estimator = factory(loss_fn)
        kept = sum(a.size for a in estimator.init(params, carry, batch).influences)
        monkeypatch.setattr(common, "device_bytes", lambda kept=kept: 3 * 8 * kept - 1)
        with pytest.raises(
            ValueError,
            match=rf"{kept // B:,} numbers in each of 3 batch rows.* need {3 * 8 * kept:,} bytes",
        ):
            estimator.init(params, carry, batch)
        monkeypatch.setattr(common, "device_bytes", lambda: 99)
        with pytest.raises(
            ValueError, match=r"the pattern of .*loss_fn, \d+ parameters by 6 carry entries"
        ):
            factory(loss_fn).init(params, carry, batch)
        monkeypatch.undo()


def test_dependent_batch_rows_are_refused_by_snap_and_right_with_rtrl():
    loss_fn, params, carry, batch = problem(CELLS["elman"], "plain")

    def mixing(params, carry, batch):
        def body(carry, now):
            carry = jax.tree.map(lambda h: h - 0.5 * jnp.mean(h, axis=0), carry)
            loss, carry = loss_fn(params, carry, jax.tree.map(lambda a: a[None], now))
            return carry, loss

        carry, losses = jax.lax.scan(body, carry, batch)
        return jnp.sum(losses), carry

    with pytest.raises(
        ValueError, match=r"mixing the rows of a batch depend on each other.*Use rtrl"
    ):
        tbptt.snap(mixing, 1).init(params, carry, batch)
    same(
        in_segments(tbptt.rtrl(mixing), params, carry, batch, 2)[0],
        full(mixing, params, carry, batch).grads,
    )
    with pytest.raises(
        ValueError, match=r"carry.* must be \[\*batch, \.\.\.\] with \*batch = \(3,\).*\(7,\)"
    ):
        tbptt.snap(lambda p, c, b: (jnp.sum(c), c), 1).init(params, jnp.ones((7,)), batch)
