"""UORO: unbiased in the mean, balanced, and alive where nothing passes."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import tbptt
from tests.test_estimators_online import CELLS, T, full, in_pieces, problem, same


def scatter(loss_fn, params, carry, batch, draws=20_000):
    """(worst |mean - truth| in standard errors, over the coordinates that scatter; worst error of the others)."""
    estimator = tbptt.uoro(loss_fn)
    memory = estimator.init(params, carry, batch)

    def one(key):
        first, second = jax.random.split(key)
        a = estimator.estimate(params, memory, jax.tree.map(lambda leaf: leaf[:2], batch), first)
        b = estimator.estimate(params, a.memory, jax.tree.map(lambda leaf: leaf[2:], batch), second)
        weights = jnp.sum(a.info.weights), jnp.sum(b.info.weights)
        total = jax.tree.map(lambda g, h: (weights[0] * g + weights[1] * h) / sum(weights), a.grads, b.grads)
        return ravel_pytree(total)[0]

    grads = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), draws))
    want = ravel_pytree(full(loss_fn, params, carry, batch).grads)[0]
    spread = jnp.std(grads, axis=0, ddof=1)
    away, random = jnp.abs(jnp.mean(grads, 0) - want), spread > 1e-12
    in_errors = away / jnp.where(random, spread / np.sqrt(draws), 1)
    return float(jnp.max(jnp.where(random, in_errors, 0))), float(jnp.max(jnp.where(random, 0, away))), int(random.sum())


@pytest.mark.parametrize("name, size", [("elman", 28)])
def test_uoro_is_unbiased_over_a_stream_in_two_pieces(name, size):
    worst, rest, scattering = scatter(*problem(CELLS[name]))
    assert worst < 4 and rest < 1e-12 and scattering == size  # the cell's parameters scatter, the readout's do not


def test_signs_that_are_not_independent_are_seen_to_be_biased(monkeypatch):
    module = importlib.import_module("tbptt.estimators.uoro")

    def lopsided(key, like):
        return [jnp.where(jax.random.bernoulli(key, 0.6, leaf.shape), 1.0, -1.0) for leaf in like]

    monkeypatch.setattr(module, "_signs", lopsided)
    assert scatter(*problem(CELLS["elman"]))[0] > 4


def test_uoro_says_how_long_its_vectors_are_and_keeps_them_balanced():
    loss_fn, params, carry, batch = problem(CELLS["elman"], "plain", steps=40)
    batch = batch._replace(inputs=30 * batch.inputs)  # derivatives by w_x 30 times larger: without balance 0.006 below
    params = params._replace(cell=params.cell._replace(w_x=params.cell.w_x / 30))
    _, out = in_pieces(tbptt.uoro(loss_fn), params, carry, batch, 40, jax.random.key(0))
    same(out.info.s_norm, jnp.linalg.norm(ravel_pytree(out.memory.s)[0]))
    same(out.info.theta_norm, jnp.linalg.norm(ravel_pytree(out.memory.theta)[0]))
    assert 0.5 < out.info.s_norm / out.info.theta_norm < 2


def test_uoro_survives_a_step_through_which_nothing_passes():
    loss_fn, params, carry, batch = problem(CELLS["elman"], "plain")
    batch = batch._replace(resets=jnp.ones((T, 3), bool), mask=jnp.arange(T)[:, None] != jnp.full((1, 3), 2))
    grads, out = in_pieces(tbptt.uoro(loss_fn), params, carry, batch, 1, jax.random.key(0))
    same(grads, full(loss_fn, params, carry, batch).grads)  # after a reset s . dl/dcarry is exactly 0
    chex.assert_tree_all_finite(out)
