"""Dropout masks depend on the step only, so identities between estimators hold."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt import Batch
from tbptt.losses import with_seeds
from tests.support.sequences import sequence_params, zero_carry

T, B, D, H, V = 8, 3, 4, 5, 7
F64 = {"param_dtype": jnp.float64}


class Embedded(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(self.rate, deterministic=False)(nn.Embed(V, D, **F64)(x))


class Logits(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, y):
        return nn.Dense(V, **F64)(nn.Dropout(self.rate, deterministic=False)(y))


assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-10, atol=1e-10)
CELL = tbptt.Elman(D, H)


def cross_entropy(outputs, targets):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[..., None], -1)[..., 0]


def loss_of(rate, **kwargs):
    return tbptt.losses.dropout_loss(
        CELL, Logits(rate), cross_entropy, embedding=Embedded(rate), **kwargs
    )


seeded = jax.jit(with_seeds)


@functools.cache
def setting():
    random = np.random.default_rng(0)
    symbols, weights = random.integers(0, V, (T + 1, B)), random.random((T, B))
    resets, mask = np.zeros((T, B), bool), np.ones((T, B), bool)
    weights[2], resets[5, 1], mask[-2:, 2] = 0, True, False
    batch = seeded(jax.random.key(1), Batch(symbols[:-1], symbols[1:], weights, resets, mask))
    params = sequence_params(CELL, Logits(0.0), Embedded(0.0))
    return params, zero_carry(CELL, (B,)), jax.tree.map(np.asarray, batch)


@functools.cache
def full_estimate():
    """Return the compiled estimate of full BPTT, and its result."""
    whole = jax.jit(tbptt.full_bptt(loss_of(0.5)).estimate)
    return whole, whole(*setting())


def test_without_dropout_it_is_sequence_loss():
    params, carry, batch = setting()
    plain = tbptt.sequence_loss(CELL, Logits(0.0), cross_entropy, embedding=Embedded(0.0))
    ours, theirs = (
        jax.jit(jax.value_and_grad(loss, has_aux=True)) for loss in (loss_of(0.0), plain)
    )
    assert_close(
        ours(params, carry, batch),
        theirs(params, carry, batch._replace(targets=batch.targets.targets)),
    )


def test_masks_equal_those_of_flax_step_by_step():
    params, carry, batch = setting()
    batch = batch._replace(weights=None, resets=None, mask=None)

    def rngs(seed, number):
        return {"dropout": jax.random.fold_in(jax.random.key(seed), number)}

    embed = jax.jit(lambda p, x, seed: Embedded(0.5).apply(p, x, rngs=rngs(seed, 0)))
    loss_at = jax.jit(
        lambda p, y, target, seed: cross_entropy(
            Logits(0.5).apply(p, y, rngs=rngs(seed, 1)), target
        )
    )
    step, total, carries = jax.jit(CELL), 0.0, carry
    for x, target, seeds in zip(
        batch.inputs, batch.targets.targets, batch.targets.seeds, strict=True
    ):
        xs = np.stack([embed(params.embedding, x[b], seeds[b]) for b in range(B)])
        carries, ys = step(params.cell, carries, xs)
        ys = np.asarray(ys)
        total += sum(float(loss_at(params.readout, ys[b], target[b], seeds[b])) for b in range(B))
    assert_close(jax.jit(loss_of(0.5))(params, carry, batch), (np.asarray(total), carries))


def test_replayed_steps_have_the_same_masks():
    params, carry, batch = setting()
    whole, full = full_estimate()
    other = seeded(jax.random.key(9), batch._replace(targets=batch.targets.targets))
    assert abs(float(full.loss) - float(whole(params, carry, other).loss)) > 1e-3
    estimator = tbptt.truncated_bptt(loss_of(0.5), 4, T)
    out = jax.jit(lambda p, c, b: estimator.estimate(p, estimator.init(p, c, b), b))(
        params, carry, batch
    )
    assert_close((out.loss, out.grads), (full.loss, full.grads))


@pytest.mark.exhaustive
def test_a_group_of_windows_has_the_same_masks():
    def estimate(estimator):
        first = lambda p, c, b: estimator.estimate(p, estimator.init(p, c, b), b)[:2]  # noqa: E731
        return jax.jit(first)(*setting())

    assert_close(
        *(estimate(tbptt.truncated_bptt(loss_of(0.5), 4, 4, group=group)) for group in (1, 2))
    )


@pytest.mark.exhaustive
def test_rematerialised_steps_have_the_same_masks():
    _, full = full_estimate()
    lean = jax.jit(tbptt.full_bptt(loss_of(0.5, remat=tbptt.Segments())).estimate)(*setting())
    assert_close((lean.loss, lean.grads), (full.loss, full.grads))


@pytest.mark.exhaustive
def test_a_single_batch_row_has_the_same_masks():
    """So batch rows may be sharded over devices."""
    params, carry, batch = setting()
    loss = jax.jit(loss_of(0.5))
    alone = jax.tree.map(lambda leaf: leaf[:, 1:2], batch)
    only = batch._replace(weights=batch.weights * (np.arange(B) == 1))
    assert_close(loss(params, zero_carry(CELL, (1,)), alone)[0], loss(params, carry, only)[0])


def test_the_mean_over_masks_is_the_loss_without_dropout():
    # E[mask / (1 - rate)] = 1, and the loss after the cell is linear.
    params, carry, batch = setting()
    total = lambda outputs, targets: jnp.sum(outputs, -1)  # noqa: E731
    noisy, exact = (
        tbptt.losses.dropout_loss(CELL, Logits(r), total, embedding=Embedded(0.0))
        for r in (0.5, 0.0)
    )
    bare = batch._replace(targets=batch.targets.targets)

    @jax.jit
    def both(params, carry, batch, bare, keys):
        losses = jax.vmap(lambda k: noisy(params, carry, with_seeds(k, bare))[0])(keys)
        return losses, exact(params, carry, batch)[0]

    losses, want = map(
        np.asarray, both(params, carry, batch, bare, jax.random.split(jax.random.key(0), 2000))
    )
    error = np.std(losses) / np.sqrt(len(losses))
    assert error > 0 and abs(np.mean(losses) - want) < 4 * error


def test_a_batch_without_seeds_is_refused():
    params, carry, batch = setting()
    with pytest.raises(
        TypeError, match=r"call with_seeds\(key, batch\) first; got targets of type .*Array"
    ):
        loss_of(0.5)(params, carry, batch._replace(targets=jnp.asarray(batch.targets.targets)))
