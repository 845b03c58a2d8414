"""UORO is unbiased, balanced, and finite if no gradient passes a step."""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import tbptt
from tests.estimators.test_online import CELLS, T, full, in_segments, problem, same


@functools.cache
def uoro(loss_fn):
    return tbptt.uoro(loss_fn)


def flagged(batch, **flags):
    """Return the batch with all flags, so that tests share a program."""
    shape = batch.inputs.shape[:2]
    default = {"weights": np.ones(shape), "resets": np.zeros(shape, bool)}
    return batch._replace(**default | {"mask": np.ones(shape, bool)} | flags)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def scatter(loss_fn, params, carry, batch, draws=20_000):
    """Compare the mean over draws with the gradient of full BPTT.

    Returns:
      (largest error in standard errors, of the random coordinates; largest error of the others;
      the number of random coordinates)
    """
    estimator = tbptt.uoro(loss_fn)
    memory = jax.jit(estimator.init)(params, carry, batch)

    def one(key):
        first, second = jax.random.split(key)
        a = estimator.estimate(params, memory, jax.tree.map(lambda leaf: leaf[:2], batch), first)
        b = estimator.estimate(params, a.memory, jax.tree.map(lambda leaf: leaf[2:], batch), second)
        weights = jnp.sum(a.info.weights), jnp.sum(b.info.weights)
        total = jax.tree.map(
            lambda g, h: (weights[0] * g + weights[1] * h) / sum(weights), a.grads, b.grads
        )
        return ravel_pytree(total)[0]

    many = jax.jit(lambda key: jax.vmap(one)(jax.random.split(key, draws)))
    grads = np.asarray(many(jax.random.key(5)))
    want = flat(full(loss_fn, params, carry, batch).grads)
    spread = np.std(grads, axis=0, ddof=1)
    away, random = np.abs(np.mean(grads, 0) - want), spread > 1e-12
    in_errors = away / np.where(random, spread / np.sqrt(draws), 1)
    return np.max(np.where(random, in_errors, 0)), np.max(np.where(random, 0, away)), random.sum()


@pytest.mark.parametrize("name, size", [("elman", 28)])
def test_uoro_is_unbiased_over_a_stream_in_two_segments(name, size):
    worst, rest, scattering = scatter(*problem(CELLS[name]))
    assert (
        worst < 4 and rest < 1e-12 and scattering == size
    )  # the cell's parameters scatter, the readout's do not


@pytest.mark.exhaustive
def test_dependent_signs_are_biased(monkeypatch):
    module = importlib.import_module("tbptt.estimators.online.uoro")

    def unequal_signs(key, like):
        return [jnp.where(jax.random.bernoulli(key, 0.6, leaf.shape), 1.0, -1.0) for leaf in like]

    monkeypatch.setattr(module, "_signs", unequal_signs)
    assert scatter(*problem(CELLS["elman"]))[0] > 4


def test_uoro_reports_its_norms_and_keeps_them_balanced():
    loss_fn, *problem_ = problem(CELLS["elman"], "plain", steps=40)
    params, carry, batch = jax.device_get(problem_)
    batch = flagged(batch)._replace(
        inputs=30 * batch.inputs
    )  # derivatives by w_x 30 times larger: without balance 0.006 below
    params = params._replace(cell=params.cell._replace(w_x=params.cell.w_x / 30))
    _, out = in_segments(uoro(loss_fn), params, carry, batch, 1, jax.random.key(0))
    same(out.info.s_norm, np.linalg.norm(flat(out.memory.s)))
    same(out.info.theta_norm, np.linalg.norm(flat(out.memory.theta)))
    assert 0.5 < out.info.s_norm / out.info.theta_norm < 2


def test_uoro_is_finite_at_resets_and_masked_steps():
    loss_fn, params, carry, batch = problem(CELLS["elman"], "plain")
    mask = np.arange(T)[:, None] != np.full((1, 3), 2)
    batch = flagged(batch, resets=np.ones((T, 3), bool), mask=mask)
    grads, out = in_segments(uoro(loss_fn), params, carry, batch, 1, jax.random.key(0))
    same(
        grads, full(loss_fn, params, carry, batch).grads
    )  # after a reset s . dl/dcarry is exactly 0
    chex.assert_tree_all_finite(out)
