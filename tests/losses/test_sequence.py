"""The sequence loss is the weighted sum of its docstring, additive over segments."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tbptt.cells import GRU, LSTM, Elman
from tbptt.losses.sequence import SequenceParams, init_params, predict, sequence_loss, squared_error
from tbptt.types import Batch
from tbptt.unroll import Segments
from tbptt.windows import split
from tests.support.sequences import sequence_params, zero_carry

T, B, D, H, K = 9, 3, 2, 4, 2
CELL, READOUT = Elman(D, H), nn.Dense(K, param_dtype=jnp.float64)
SYMBOLS, EMBED = 5, nn.Embed(5, D, param_dtype=jnp.float64)
CLASSES = nn.Dense(SYMBOLS, param_dtype=jnp.float64)
softmax_loss = optax.softmax_cross_entropy_with_integer_labels
close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


LOSS, CARRY = sequence_loss(CELL, READOUT, squared_error), zero_carry(CELL, (B,))
graded = jax.jit(
    jax.value_and_grad(LOSS, has_aux=True)
)  # compiled once for all batches with the same flags
second = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


@pytest.fixture
def batch():
    random = np.random.default_rng(1)
    weights = random.random((T, B))
    weights[:2] = 0  # burn-in
    return Batch(
        inputs=random.normal(size=(T, B, D)),
        targets=random.normal(size=(T, B, K)),
        weights=weights,
        resets=random.random((T, B)) < 0.2,
        mask=random.random((T, B)) < 0.7,
    )


@pytest.fixture
def params():
    return sequence_params(CELL, READOUT, shift=0.05)


def reference(params, batch):
    """Compute the loss in numpy, row by row and step by step."""
    w_h, w_x, b = (np.asarray(p) for p in params.cell)
    dense = jax.tree.map(np.asarray, params.readout["params"])
    total = 0.0
    for row in range(B):
        h = np.zeros(H)
        for t in range(T):
            if batch.mask is not None and not batch.mask[t, row]:
                continue
            if batch.resets is not None and batch.resets[t, row]:
                h = np.zeros(H)
            h = np.tanh(h @ w_h + np.asarray(batch.inputs[t, row]) @ w_x + b)
            weight = 1.0 if batch.weights is None else float(batch.weights[t, row])
            if weight != 0:
                error = h @ dense["kernel"] + dense["bias"] - np.asarray(batch.targets[t, row])
                total += weight * np.mean(error**2)
    return total


FLAGS = [
    (),
    ("weights", "mask", "resets"),
    *(second((name,)) for name in ("weights", "mask", "resets")),
]


@pytest.mark.parametrize("missing", FLAGS, ids=str)
def test_is_the_weighted_sum_of_the_reference(missing, params, batch):
    batch = batch._replace(**dict.fromkeys(missing))
    close(graded(params, CARRY, batch)[0][0], reference(params, batch))


def test_nan_at_steps_that_do_not_count_has_no_effect(params, batch):
    want = graded(params, CARRY, batch)
    counts = (batch.weights != 0) & batch.mask
    holes = batch._replace(targets=np.where(counts[..., None], batch.targets, np.nan))
    holes = holes._replace(inputs=np.where(batch.mask[..., None], holes.inputs, np.nan))
    assert 0 < np.sum(~counts) < T * B
    jax.tree.map(close, graded(params, CARRY, holes), want)
    assert min(np.max(np.abs(g)) for g in jax.tree.leaves(want[1])) > 1e-3


@pytest.mark.parametrize("points", [(1, 2, 8), second((4,)), second(tuple(range(1, T)))], ids=str)
def test_is_additive_over_segments(points, params, batch):
    def in_segments(params, carry, batch):
        total = 0.0
        for segment in split(batch, *points):
            segment_sum, carry = LOSS(params, carry, segment)
            total = total + segment_sum
        return total, carry

    got = jax.jit(jax.value_and_grad(in_segments, has_aux=True))(params, CARRY, batch)
    jax.tree.map(close, got, graded(params, CARRY, batch))


@pytest.mark.exhaustive
def test_remat_changes_nothing(params, batch):
    remat = sequence_loss(CELL, READOUT, squared_error, remat=Segments(4))
    got = jax.jit(jax.value_and_grad(remat, has_aux=True))(params, CARRY, batch)
    jax.tree.map(close, got, graded(params, CARRY, batch))


def test_embedded_symbols_and_cross_entropy():
    cell = LSTM(D, H)
    params, carry = sequence_params(cell, CLASSES, EMBED), zero_carry(cell, (B,))
    symbols = np.random.default_rng(2).integers(
        0, SYMBOLS - 1, (T + 1, B)
    )  # the last one is not read
    batch = Batch(symbols[:-1], symbols[1:], weights=np.linspace(0.0, 1.0, T * B).reshape(T, B))
    loss_fn = sequence_loss(cell, CLASSES, softmax_loss, embedding=EMBED)

    table = np.asarray(params.embedding["params"]["embedding"])
    floats = batch._replace(inputs=table[batch.inputs])  # the same vectors, indexed in numpy

    @jax.jit
    def both(params, carry):
        graded = jax.value_and_grad(loss_fn, has_aux=True)(
            params, carry, jax.tree.map(jnp.asarray, batch)
        )
        return graded, predict(cell, CLASSES, params, carry, jax.tree.map(jnp.asarray, floats))

    ((total, after), grads), (want_carry, logits) = jax.tree.map(np.asarray, both(params, carry))
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0]
    close(total, -np.sum(batch.weights * picked))
    jax.tree.map(close, after, want_carry)
    slopes = grads.embedding["params"]["embedding"]
    assert np.max(np.abs(slopes)) > 1e-2  # the embedding has a gradient
    unread = np.setdiff1d(np.arange(SYMBOLS), batch.inputs)
    assert unread.size and not np.any(slopes[unread])


def test_init_params_depends_on_the_key_and_has_the_sizes_of_the_modules():
    draw = jax.jit(lambda key: init_params(key, CELL, READOUT))
    params, other = (draw(jax.random.key(seed)) for seed in (0, 1))
    assert isinstance(params, SequenceParams) and params.embedding == ()
    assert params.readout["params"]["kernel"].shape == (H, K)
    assert np.max(np.abs(other.cell.w_h - params.cell.w_h)) > 0.1


def test_squared_error_averages_the_last_axis_only():
    outputs, targets = np.array([[1.0, 2.0], [0.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(jax.jit(squared_error)(outputs, targets), [2.5, 4.5])


def vector_loss(outputs, targets):
    return (outputs - targets) ** 2


def scalar_loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


@pytest.mark.parametrize("wrong", [vector_loss, scalar_loss])
def test_a_loss_of_wrong_shape_is_named(wrong, params, batch):
    with pytest.raises(
        ValueError, match=rf"{wrong.__name__} must return one number per step.*\(9, 3\); got shape"
    ):
        jax.eval_shape(sequence_loss(CELL, READOUT, wrong), params, CARRY, batch)


def test_weights_of_wrong_shape_are_named(params, batch):
    for shape in ((T + 1, B), (B,), (T, B, 1)):
        with pytest.raises(
            ValueError, match=r"batch.weights must be .*\(9, 3\).*inputs \(9, 3, 2\); got shape"
        ):
            jax.eval_shape(
                LOSS, params, CARRY, Batch(batch.inputs, batch.targets, weights=np.ones(shape))
            )
    with pytest.raises(
        ValueError, match=r"batch.weights must be .* = \(9, 3\).*got shape \(3, 9\)"
    ):
        jax.eval_shape(LOSS, params, CARRY, batch._replace(weights=batch.weights.T))


def test_an_embedding_of_wrong_size_is_refused(key):
    with pytest.raises(ValueError, match=r"D = cell.input_dim = 2; got \(7,\)"):
        jax.eval_shape(lambda: init_params(key, CELL, CLASSES, nn.Embed(SYMBOLS, 7)))


def test_a_readout_of_another_library_is_refused(key):
    with pytest.raises(TypeError, match="readout must be a flax linen module; got Linear.* write"):
        inspect.unwrap(init_params)(key, GRU(2, 3), nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
