"""Gradient norms by lag equal autodiff lag by lag, and Theorem 1 holds as an inequality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.estimators.adaptive.decay import measure_by_lag
from tests.support import oracle
from tests.support.estimating import CELLS, B, make


def rows_by_autodiff(loss_fn, params, carry, batch, steps, lags):
    """Return ||d L_s / d carry_{s-k}|| of every batch row, `[len(steps), lags, B]`."""

    def losses(added):
        def body(entering, now):
            added, step = now
            loss, left = loss_fn(
                params,
                jax.tree.map(jnp.add, entering, added),
                jax.tree.map(lambda a: a[None], step),
            )
            return left, loss

        return jax.lax.scan(body, carry, (added, batch))[1][np.asarray(steps)]

    none = jax.tree.map(lambda a: np.zeros((len(batch.inputs), *a.shape)), carry)
    by_carry = jax.tree.leaves(
        jax.device_get(jax.jit(jax.jacrev(losses))(none))
    )  # leaves [S, T, B, ...]
    norms = np.sqrt(
        sum(np.sum(np.square(leaf), axis=tuple(range(3, leaf.ndim))) for leaf in by_carry)
    )
    return np.array(
        [[norms[i, s - k + 1] for k in range(1, lags + 1)] for i, s in enumerate(steps)]
    )


@pytest.mark.parametrize(
    "name, extra", [("lstm", "all"), pytest.param("stack", "weights", marks=pytest.mark.exhaustive)]
)
def test_phi_equals_autodiff_one_lag_at_a_time(name, extra):
    loss_fn, params, carry, batch = make(CELLS[name], extra, T=7)
    lags, S = 5, 3
    got = jax.device_get(
        jax.jit(lambda p, c, b: measure_by_lag(loss_fn, p, c, b, lags))(params, carry, batch)
    )
    each = rows_by_autodiff(loss_fn, params, carry, batch, (4, 5, 6), lags)
    weight = float(oracle.weight_of(oracle.part(jax.tree.map(np.asarray, batch), 7 - S, 7)))
    np.testing.assert_allclose(got.phi, np.sum(each, axis=(0, 2)) / weight, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(got.weight, weight, rtol=1e-12)
    assert (got.phi > 0).sum() >= 3


@pytest.mark.parametrize(
    "name, extra, Ks",
    [
        ("elman", "all", (4,)),
        pytest.param("lstm", "plain", (2, 7), marks=pytest.mark.exhaustive),
    ],
)
def test_theorem_1_measured_bias_is_never_above_the_bound(name, extra, Ks, record_property):
    lags, slack = 10, []
    loss_fn = make(CELLS[name], extra)[0]
    estimators = [tbptt.full_bptt(loss_fn), *(tbptt.truncated_bptt(loss_fn, 1, K) for K in Ks)]

    def one(params, carry, batch):
        grads = [e.estimate(params, e.init(params, carry, batch), batch).grads for e in estimators]
        return measure_by_lag(loss_fn, params, carry, batch, lags), grads

    points = []
    for seed in range(16):
        params, carry, batch = jax.device_get(make(CELLS[name], extra, seed=seed, T=lags)[1:])
        params = jax.tree.map(lambda p, seed=seed: p * (0.6 + 0.1 * seed), params)
        last = np.zeros((lags, B))
        last[-1] = 1.0 if batch.weights is None else batch.weights[-1]
        points.append((params, carry, batch._replace(weights=last)))

    def norm(tree):
        return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))

    measured = jax.jit(one)  # no vmap over points: its trace takes twice as long
    for point in points:
        seen, (full, *truncated) = jax.device_get(measured(*point))
        M = np.max(
            np.where(
                seen.phi[:-1] > 0,
                seen.contributions / np.where(seen.phi[:-1] > 0, seen.phi[:-1], 1),
                0,
            )
        )
        assert seen.largest >= max(map(norm, (full, *truncated))) * (1 - 1e-10)
        for K, g in zip(Ks, truncated, strict=True):
            bias = norm(jax.tree.map(np.subtract, g, full))
            bound = float(seen.contributions[K - 1 :].sum())  # lag K first
            loose = M * float(seen.phi[K - 1 : -1].sum())
            assert bias <= bound * (1 + 1e-9) + 1e-14 and bound <= loose * (1 + 1e-9) + 1e-14
            slack += [bound / bias] if bias > 1e-12 else []
    assert len(slack) > 10 and np.median(slack) < 10  # a useful bound
    record_property(
        "slack",
        f"bound / bias: median {np.median(slack):.3g}, range {min(slack):.3g} .. {max(slack):.3g}",
    )
    median, low, high = np.median(slack), min(slack), max(slack)
    print(f"{name}: bound / bias: median {median:.3g}, range {low:.3g} .. {high:.3g}")


def test_batch_rows_are_measured_separately_only_if_the_carry_has_them():
    """A carry with a leaf without batch axes is one vector."""

    def loss(params, carry, batch):
        def body(state, x):
            h, common = state
            h = params * h + x[..., 0] + common
            return (h, 0.5 * common), jnp.sum(h**2)

        carry, losses = jax.lax.scan(body, carry, batch.inputs)
        return jnp.sum(losses), carry

    xs = np.random.default_rng(0).normal(size=(6, B, 1))
    carry, batch, ks = (np.ones(B), np.ones(())), tbptt.Batch(xs, xs), (2, 6)

    @jax.jit
    def compared(carry, batch):
        slopes = []
        for k in ks:
            _, entering = loss(0.7, carry, oracle.part(batch, 0, 6 - k))

            def last_loss(carry, k=k):
                _, carry = loss(0.7, carry, oracle.part(batch, 6 - k, 5))
                return loss(0.7, carry, oracle.part(batch, 5, 6))[0]

            slopes.append(jax.grad(last_loss)(entering))
        return measure_by_lag(loss, jnp.array(0.7), carry, batch, 6), slopes

    got, slopes = jax.device_get(compared(carry, batch))
    for k, slope in zip(ks, slopes, strict=True):
        want = np.sqrt(sum(np.sum(np.square(g)) for g in slope)) / B
        np.testing.assert_allclose(got.phi[k - 1], want, rtol=1e-10)
