"""The sequence loss is the weighted sum of its docstring, additive over pieces, deaf to steps that do not count."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import LSTM, Elman
from tbptt.objectives import SequenceParams, init_params, predict, sequence_loss, squared_error
from tbptt.types import Batch
from tbptt.unroll import Segments
from tbptt.windows import split

T, B, D, H, K = 9, 3, 2, 4, 2
CELL, READOUT = Elman(D, H), nn.Dense(K, param_dtype=jnp.float64)
SYMBOLS, EMBED = 5, nn.Embed(5, D, param_dtype=jnp.float64)
CLASSES = nn.Dense(SYMBOLS, param_dtype=jnp.float64)
softmax_loss = optax.softmax_cross_entropy_with_integer_labels
close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


@pytest.fixture
def batch():
    k_x, k_y, k_w, k_m, k_r = jax.random.split(jax.random.key(1), 5)
    weights = jax.random.uniform(k_w, (T, B)).at[:2].set(0)  # burn-in
    return Batch(
        inputs=jax.random.normal(k_x, (T, B, D)),
        targets=jax.random.normal(k_y, (T, B, K)),
        weights=weights,
        resets=jax.random.bernoulli(k_r, 0.2, (T, B)),
        mask=jax.random.bernoulli(k_m, 0.7, (T, B)),
    )


@pytest.fixture
def params(key):
    return jax.tree.map(lambda p: p + 0.05, init_params(key, CELL, READOUT))


def by_hand(params, batch):
    """numpy, lane by lane and step by step."""
    w_h, w_x, b = (np.asarray(p) for p in params.cell)
    dense = jax.tree.map(np.asarray, params.readout["params"])
    total = 0.0
    for lane in range(B):
        h = np.zeros(H)
        for t in range(T):
            if batch.mask is not None and not batch.mask[t, lane]:
                continue
            if batch.resets is not None and batch.resets[t, lane]:
                h = np.zeros(H)
            h = np.tanh(h @ w_h + np.asarray(batch.inputs[t, lane]) @ w_x + b)
            weight = 1.0 if batch.weights is None else float(batch.weights[t, lane])
            if weight != 0:
                error = h @ dense["kernel"] + dense["bias"] - np.asarray(batch.targets[t, lane])
                total += weight * np.mean(error**2)
    return total


@pytest.mark.parametrize("missing", [(), ("weights",), ("mask",), ("resets",), ("weights", "mask", "resets")], ids=str)
def test_is_the_weighted_sum_by_hand(missing, params, batch):
    batch = batch._replace(**dict.fromkeys(missing))
    loss_fn = sequence_loss(CELL, READOUT, squared_error)
    close(loss_fn(params, CELL.initial_carry((B,)), batch)[0], by_hand(params, batch))


def test_nan_targets_that_do_not_count_do_no_harm(params, batch):
    grad = jax.value_and_grad(sequence_loss(CELL, READOUT, squared_error), has_aux=True)
    want = grad(params, CELL.initial_carry((B,)), batch)
    counts = (batch.weights != 0) & batch.mask
    holes = batch._replace(targets=jnp.where(counts[..., None], batch.targets, jnp.nan))
    holes = holes._replace(inputs=jnp.where(batch.mask[..., None], holes.inputs, jnp.nan))
    assert 0 < int(jnp.sum(~counts)) < T * B
    jax.tree.map(close, grad(params, CELL.initial_carry((B,)), holes), want)
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want[1])) > 1e-3


@pytest.mark.parametrize("points", [(4,), (1, 2, 8), tuple(range(1, T))], ids=str)
def test_is_additive_over_pieces(points, params, batch):
    loss_fn = sequence_loss(CELL, READOUT, squared_error)

    def in_pieces(params, carry, batch):
        total = 0.0
        for piece in split(batch, *points):
            piece_sum, carry = loss_fn(params, carry, piece)
            total = total + piece_sum
        return total, carry

    carry = CELL.initial_carry((B,))
    whole = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, batch)
    jax.tree.map(close, jax.value_and_grad(in_pieces, has_aux=True)(params, carry, batch), whole)


def test_remat_changes_nothing(params, batch):
    carry = CELL.initial_carry((B,))
    plain, remat = (
        jax.value_and_grad(sequence_loss(CELL, READOUT, squared_error, remat=r), has_aux=True)(params, carry, batch)
        for r in (None, Segments(4))
    )
    jax.tree.map(close, remat, plain)


def test_embedded_symbols_and_cross_entropy(key):
    cell = LSTM(D, H)
    params = init_params(key, cell, CLASSES, EMBED)
    symbols = jax.random.randint(jax.random.key(2), (T + 1, B), 0, SYMBOLS)
    batch = Batch(symbols[:-1], symbols[1:], weights=jnp.linspace(0.0, 1.0, T * B).reshape(T, B))
    loss_fn = sequence_loss(cell, CLASSES, softmax_loss, embedding=EMBED)
    (total, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, cell.initial_carry((B,)), batch)

    table = np.asarray(params.embedding["params"]["embedding"])
    floats = batch._replace(inputs=jnp.asarray(table[np.asarray(batch.inputs)]))  # the same vectors, looked up by hand
    want_carry, logits = predict(cell, CLASSES, params, cell.initial_carry((B,)), floats)
    logits = np.asarray(logits)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.asarray(batch.targets)[..., None], axis=-1)[..., 0]
    close(total, -np.sum(np.asarray(batch.weights) * picked))
    jax.tree.map(close, carry, want_carry)
    assert float(jnp.max(jnp.abs(grads.embedding["params"]["embedding"]))) > 1e-2  # the embedding learns
    unread = np.setdiff1d(np.arange(SYMBOLS), np.asarray(batch.inputs))
    assert not np.any(np.asarray(grads.embedding["params"]["embedding"])[unread])


def test_init_params_draws_apart_and_reads_the_sizes(key):
    params = init_params(key, CELL, READOUT)
    assert isinstance(params, SequenceParams) and params.embedding == ()
    assert params.readout["params"]["kernel"].shape == (H, K)
    other = init_params(jax.random.key(1), CELL, READOUT)
    assert float(jnp.max(jnp.abs(other.cell.w_h - params.cell.w_h))) > 0.1


def test_squared_error_averages_the_last_axis_only():
    outputs, targets = jnp.array([[1.0, 2.0], [0.0, 4.0]]), jnp.array([[0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(squared_error(outputs, targets), [2.5, 4.5])


def vector_loss(outputs, targets):
    return (outputs - targets) ** 2


def scalar_loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


@pytest.mark.parametrize("wrong", [vector_loss, scalar_loss])
def test_a_loss_of_wrong_shape_is_named(wrong, params, batch):
    with pytest.raises(ValueError, match=rf"{wrong.__name__} must return one number a step.*\(9, 3\); got shape"):
        sequence_loss(CELL, READOUT, wrong)(params, CELL.initial_carry((B,)), batch)


def test_weights_of_wrong_shape_are_named(params, batch):
    loss_fn, carry = sequence_loss(CELL, READOUT, squared_error), CELL.initial_carry((B,))
    for shape in ((T + 1, B), (B,), (T, B, 1)):
        with pytest.raises(ValueError, match=r"weights, resets and mask must be .*\(9, 3, 2\); got shape"):
            loss_fn(params, carry, Batch(batch.inputs, batch.targets, weights=jnp.ones(shape)))
    with pytest.raises(ValueError, match=r"weights \(3, 9\), mask \(9, 3\)"):
        loss_fn(params, carry, batch._replace(weights=batch.weights.T))


def test_an_embedding_of_wrong_size_is_refused(key):
    with pytest.raises(ValueError, match=r"D = cell.input_dim = 2; got \(7,\)"):
        init_params(key, CELL, CLASSES, nn.Embed(SYMBOLS, 7))
