"""Gradients by lag, which the window is chosen from: autodiff one lag at a time, and Theorem 1 as an inequality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.estimators.by_lag import measure_by_lag
from tbptt.norms import global_norm
from tests import oracle
from tests.test_estimators import CELLS, B, make


def lanes_by_autodiff(loss_fn, params, carry, batch, steps, lags):
    """||d L_s / d carry_{s-k}|| of every lane, `[len(steps), lags, B]`: what is added to a carry counts as the carry."""

    def losses(added):
        out, entering = [], carry
        for t in range(len(batch.inputs)):
            entering = jax.tree.map(jnp.add, entering, added[t])
            loss, entering = loss_fn(params, entering, oracle.part(batch, t, t + 1))
            out.append(loss)
        return jnp.stack(out)[np.asarray(steps)]

    none = [jax.tree.map(jnp.zeros_like, carry) for _ in batch.inputs]
    by_carry = [jax.tree.leaves(tree) for tree in jax.jit(jax.jacrev(losses))(none)]  # leaves [S, B, ...]
    norms = np.sqrt([sum(np.sum(np.square(leaf), axis=tuple(range(2, leaf.ndim))) for leaf in tree) for tree in by_carry])
    return np.array([[norms[s - k + 1, i] for k in range(1, lags + 1)] for i, s in enumerate(steps)])


@pytest.mark.parametrize("name, extra", [("lstm", "all"), ("stack", "weights")])
def test_phi_is_what_autodiff_gives_one_lag_at_a_time(name, extra):
    loss_fn, params, carry, batch = make(CELLS[name], extra, T=7)
    lags, S = 5, 3
    got = jax.jit(lambda p, c, b: measure_by_lag(loss_fn, p, c, b, lags))(params, carry, batch)
    each = lanes_by_autodiff(loss_fn, params, carry, batch, (4, 5, 6), lags)
    weight = float(oracle.weight_of(oracle.part(batch, 7 - S, 7)))
    np.testing.assert_allclose(got.phi, np.sum(each, axis=(0, 2)) / weight, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(got.weight, weight, rtol=1e-12)
    assert (got.phi > 0).sum() >= 3


@pytest.mark.parametrize("name, extra", [("elman", "plain"), ("lstm", "all")])
def test_theorem_1_measured_bias_is_never_above_the_bound(name, extra, record_property):
    lags, Ks, slack = 10, (1, 2, 4, 7), []
    loss_fn = make(CELLS[name], extra)[0]
    estimators = [tbptt.full_bptt(loss_fn), *(tbptt.truncated_bptt(loss_fn, 1, K) for K in Ks)]

    def one(params, carry, batch):
        grads = [e.estimate(params, e.init(params, carry, batch), batch).grads for e in estimators]
        return measure_by_lag(loss_fn, params, carry, batch, lags), grads

    points = []
    for seed in range(8):
        _, params, carry, batch = make(CELLS[name], extra, seed=seed, T=lags)
        params = jax.tree.map(lambda p, seed=seed: p * (0.6 + 0.2 * seed), params)
        last = jnp.zeros((lags, B)).at[-1].set(1.0 if batch.weights is None else batch.weights[-1])
        points.append((params, carry, batch._replace(weights=last)))
    found = jax.jit(jax.vmap(one))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *points))
    for seed in range(8):
        seen, (full, *truncated) = jax.tree.map(lambda a, seed=seed: a[seed], found)
        M = np.max(np.where(seen.phi[:-1] > 0, seen.parts / np.where(seen.phi[:-1] > 0, seen.phi[:-1], 1), 0))
        sizes = [float(global_norm(g)) for g in (full, *truncated)]
        assert seen.largest >= max(sizes) * (1 - 1e-10)
        for K, g in zip(Ks, truncated, strict=True):
            bias = float(global_norm(jax.tree.map(jnp.subtract, g, full)))
            bound = float(seen.parts[K - 1 :].sum())  # lag K first
            loose = M * float(seen.phi[K - 1 : -1].sum())
            assert bias <= bound * (1 + 1e-9) + 1e-14 and bound <= loose * (1 + 1e-9) + 1e-14
            slack += [bound / bias] if bias > 1e-12 else []
    assert len(slack) > 10 and np.median(slack) < 10  # a bound, and not an empty one
    record_property("slack", f"bound / bias: median {np.median(slack):.3g}, range {min(slack):.3g} .. {max(slack):.3g}")
    print(f"{name}: bound / bias: median {np.median(slack):.3g}, range {min(slack):.3g} .. {max(slack):.3g}")


def test_lanes_are_measured_apart_only_where_the_carry_has_them():
    """A carry with a leaf that no lane owns is one vector."""

    def loss(params, carry, batch):
        def body(state, x):
            h, common = state
            h = params * h + x[..., 0] + common
            return (h, 0.5 * common), jnp.sum(h**2)

        carry, losses = jax.lax.scan(body, carry, batch.inputs)
        return jnp.sum(losses), carry

    xs = jax.random.normal(jax.random.key(0), (6, B, 1))
    carry = (jnp.ones(B), jnp.ones(()))
    got = measure_by_lag(loss, jnp.array(0.7), carry, tbptt.Batch(xs, xs), 6)
    whole = lambda start: jax.grad(  # noqa: E731
        lambda c: loss(
            0.7, loss(0.7, c, oracle.part(tbptt.Batch(xs, xs), start, 5))[1], oracle.part(tbptt.Batch(xs, xs), 5, 6)
        )[0]
    )
    for k in (2, 6):
        entering = loss(0.7, carry, oracle.part(tbptt.Batch(xs, xs), 0, 6 - k))[1] if k < 6 else carry
        want = np.sqrt(sum(np.sum(np.square(g)) for g in whole(6 - k)(entering))) / B
        np.testing.assert_allclose(got.phi[k - 1], want, rtol=1e-10)
