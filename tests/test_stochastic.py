"""Dropout under estimators: a mask belongs to its step, so every identity between estimators holds with it."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt import Batch, with_seeds

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
CELL = tbptt.LSTM(D, H)


def cross_entropy(outputs, targets):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[..., None], -1)[..., 0]


def loss_of(rate, **kwargs):
    return tbptt.stochastic_loss(CELL, Logits(rate), cross_entropy, embedding=Embedded(rate), **kwargs)


def setting(key, steps=T):
    k_p, k_x, k_w, k_s = jax.random.split(key, 4)
    params = tbptt.init_params(k_p, CELL, Logits(0.0), Embedded(0.0))
    symbols = jax.random.randint(k_x, (steps + 1, B), 0, V)
    weights = jax.random.uniform(k_w, (steps, B)).at[2].set(0)
    resets = jnp.zeros((steps, B), bool).at[5, 1].set(True)
    mask = jnp.ones((steps, B), bool).at[-2:, 2].set(False)
    return params, CELL.initial_carry((B,)), with_seeds(k_s, Batch(symbols[:-1], symbols[1:], weights, resets, mask))


def test_without_dropout_it_is_sequence_loss(key):
    params, carry, batch = setting(key)
    plain = tbptt.sequence_loss(CELL, Logits(0.0), cross_entropy, embedding=Embedded(0.0))
    ours, theirs = (jax.jit(jax.value_and_grad(loss, has_aux=True)) for loss in (loss_of(0.0), plain))
    assert_close(ours(params, carry, batch), theirs(params, carry, batch._replace(targets=batch.targets.targets)))


def test_masks_are_those_of_flax_written_out_step_by_step(key):
    params, carry, batch = setting(key)
    batch = batch._replace(weights=None, resets=None, mask=None)
    loss, carries = jnp.zeros(()), carry
    for t in range(T):
        xs, outputs = [], []
        for b in range(B):
            noise = jax.random.key(batch.targets.seeds[t, b])
            rngs = {"dropout": jax.random.fold_in(noise, 0)}
            xs.append(Embedded(0.5).apply(params.embedding, batch.inputs[t, b], rngs=rngs))
        carries, y = CELL(params.cell, carries, jnp.stack(xs))
        for b in range(B):
            rngs = {"dropout": jax.random.fold_in(jax.random.key(batch.targets.seeds[t, b]), 1)}
            outputs.append(Logits(0.5).apply(params.readout, y[b], rngs=rngs))
        loss += jnp.sum(cross_entropy(jnp.stack(outputs), batch.targets.targets[t]))
    assert_close(loss_of(0.5)(params, carry, batch), (loss, carries))


def test_every_way_to_cut_meets_the_same_masks(key):
    params, carry, batch = setting(key)
    loss = loss_of(0.5)
    whole = jax.jit(tbptt.full_bptt(loss).estimate)
    full = whole(params, carry, batch)
    other = with_seeds(jax.random.key(9), batch._replace(targets=batch.targets.targets))
    assert abs(full.loss - whole(params, carry, other).loss) > 1e-3
    estimator = tbptt.truncated_bptt(loss, 4, T)  # replays all its past
    out = jax.jit(estimator.estimate)(params, estimator.init(params, carry, batch), batch)
    assert_close((out.loss, out.grads), (full.loss, full.grads))
    one, many = (tbptt.truncated_bptt(loss, 2, 4, group=group) for group in (1, 2))
    memory = one.init(params, carry, batch)
    assert_close(*(jax.jit(cut.estimate)(params, memory, batch)[:2] for cut in (one, many)))
    lean = jax.jit(tbptt.full_bptt(loss_of(0.5, remat=tbptt.Segments())).estimate)(params, carry, batch)
    assert_close((lean.loss, lean.grads), (full.loss, full.grads))
    alone = jax.tree.map(lambda leaf: leaf[:, 1:2], batch)  # and lanes may be spread over devices
    only = batch._replace(weights=batch.weights * (jnp.arange(B) == 1))
    assert_close(jax.jit(loss)(params, CELL.initial_carry((1,)), alone)[0], jax.jit(loss)(params, carry, only)[0])


def test_a_pass_is_averaged_over_masks(key):
    # E[mask / (1 - rate)] = 1: with a linear loss after the cell the mean over seeds is the loss without dropout.
    params, carry, batch = setting(key)
    total = lambda outputs, targets: jnp.sum(outputs, -1)  # noqa: E731
    noisy = tbptt.stochastic_loss(CELL, Logits(0.5), total, embedding=Embedded(0.0))
    exact = tbptt.stochastic_loss(CELL, Logits(0.0), total, embedding=Embedded(0.0))(params, carry, batch)[0]
    bare = batch._replace(targets=batch.targets.targets)
    losses = jax.jit(jax.vmap(lambda k: noisy(params, carry, with_seeds(k, bare))[0]))(jax.random.split(key, 2000))
    error = np.std(losses) / np.sqrt(len(losses))
    assert error > 0 and abs(np.mean(losses) - exact) < 4 * error


def test_a_batch_without_seeds_is_refused(key):
    params, carry, batch = setting(key)
    with pytest.raises(TypeError, match=r"call with_seeds\(key, batch\) before; got targets of type .*Array"):
        loss_of(0.5)(params, carry, batch._replace(targets=batch.targets.targets))
