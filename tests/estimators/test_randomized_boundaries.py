"""The gradient for given truncations: full BPTT, disjoint windows, and the memory of one block."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.estimators.randomized.estimator import boundary_gradient
from tbptt.estimators.randomized.schedules import HeavyTail
from tbptt.windows import split_windows
from tests.support.estimating import CELLS, B, T, make, own_problem, run

exhaustive = pytest.mark.exhaustive


@functools.cache
def compiled(loss_fn, k1):
    return jax.jit(
        lambda p, c, b, factors: boundary_gradient(loss_fn, p, c, split_windows(b, k1), factors)
    )


def by_factors(loss_fn, params, carry, batch, k1, factors):
    """Return `boundary_gradient` for rows of factors, as numpy arrays."""
    return jax.device_get(compiled(loss_fn, k1)(params, carry, batch, factors))


@pytest.mark.parametrize(
    "name, extra",
    [
        ("elman", "all"),
        pytest.param("lstm", "plain", marks=exhaustive),
        pytest.param("stack", "mask", marks=exhaustive),
    ],
)
def test_without_truncation_it_is_full_bptt(name, extra):
    loss_fn, params, carry, batch = make(CELLS[name], extra)
    got = by_factors(loss_fn, params, carry, batch, 3, np.ones((2, 3)))
    want = run(tbptt.full_bptt(loss_fn), params, carry, batch)
    chex.assert_trees_all_close(got[:3], want[:3], rtol=1e-12, atol=1e-14)
    assert got.info.longest == got.info.mean_length == T and got.info.largest_product == 1
    assert got.info.variance < 1e-28


def test_truncation_at_every_boundary_is_disjoint_truncation():
    loss_fn, params, carry, batch = make(CELLS["elman"], "all")
    got = by_factors(loss_fn, params, carry, batch, 3, np.zeros((2, 3)))
    want = run(tbptt.truncated_bptt(loss_fn, 3, 3), params, carry, batch)
    chex.assert_trees_all_close(got[:3], want[:3], rtol=1e-11, atol=1e-14)
    chex.assert_trees_all_close((got.info.losses, got.info.weights), tuple(want.info), rtol=1e-12)


def test_lengths_and_products_are_reported():
    factors = np.array([[2.0, 0.0, 1.5, 1.5, 0.0], [0.0, 0.0, 3.0, 0.0, 1.25]])
    info = by_factors(*own_problem(), 2, factors).info
    # segments of 2 3 1 and 1 1 2 2 blocks of 2 steps
    assert (
        info.longest == 6
        and info.largest_product == 3.0
        and info.mean_length == pytest.approx(2 * 12 / 7)
    )


def test_a_truncation_stops_what_is_not_finite():
    """An infinite cotangent is dropped: 0 times inf would be NaN."""

    def loss(params, carry, batch):  # one step at a time; the carry stays at 1
        carry = 1 + batch.inputs[0, 0, 0] * (carry - 1) + (params - 0.5)
        return carry, carry

    slopes = np.array([1.0, 1.0, 1e200, 1e200, 1.0])[:, None, None]

    @jax.jit
    def grads(row):
        return boundary_gradient(
            loss,
            jnp.array(0.5),
            jnp.array(1.0),
            split_windows(tbptt.Batch(slopes, slopes), 1),
            row[None],
        ).grads

    assert grads(np.array([1.0, 1.0, 1.0, 1.0])) == np.inf
    assert float(grads(np.array([1.0, 0.0, 1.0, 1.0]))) == pytest.approx(2e200 / 5)


@pytest.mark.exhaustive
def test_the_traced_program_does_not_grow_and_memory_holds_one_block():
    def lowered(length, k1):
        loss_fn, params, carry, batch = make(CELLS["elman"])
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((length, *a.shape[1:]), a.dtype), batch)
        return jax.jit(tbptt.randomized_bptt(loss_fn, k1, HeavyTail(100.0), draws=2).estimate), (
            params,
            carry,
            batch,
            jax.random.key(0),
        )

    def size(length, k1):
        estimate, args = lowered(length, k1)
        return str(jax.make_jaxpr(estimate)(*args)).count("\n")

    assert abs(size(64, 8) - size(1024, 32)) <= 2  # the printer breaks its lines by width

    def temp(length, k1):
        estimate, args = lowered(length, k1)
        return estimate.lower(*args).compile().memory_analysis().temp_size_in_bytes

    boundary = 8 * (B * 4 + 40)  # bytes of a carry and of the draw, per boundary
    data = 8 * B * 4  # inputs and targets of a step, which XLA may copy
    assert temp(4096, 32) - temp(1024, 32) <= 3 * (boundary * 96 + 2 * data * 3072)
