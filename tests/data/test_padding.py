"""Padded sequences train and are scored as the separate sequences are."""

import inspect

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import tbptt
from tbptt.data import last_outputs, pad, padded_length
from tests.support.sequences import sequence_params, zero_carry

CELL, READOUT = tbptt.Elman(2, 4), nn.Dense(3, param_dtype=float)
LOSS_FN = tbptt.sequence_loss(CELL, READOUT, optax.losses.softmax_cross_entropy_with_integer_labels)
PARAMS = sequence_params(CELL, READOUT)
LENGTHS, LABELS = (5, 2, 7), np.array([2, 0, 1])
SEQUENCES = [np.random.default_rng(i).normal(size=(n, 2)) for i, n in enumerate(LENGTHS)]


@jax.jit
def outputs_of(carry, batch):
    return tbptt.predict(CELL, READOUT, PARAMS, carry, batch)[1]


@jax.jit
def loss_of(carry, batch):
    return LOSS_FN(PARAMS, carry, batch)[0]


def cross_entropy(logits, labels):
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[:, None], -1)[:, 0]


@jax.jit
def step_of(params, carry, x):
    carry, y = CELL(params.cell, carry, x)
    return carry, READOUT.apply(params.readout, y)


def separate(i):
    """Return the outputs of one sequence alone, `[T_i, K]`."""
    carry, outputs = zero_carry(CELL), []
    for x in SEQUENCES[i]:
        carry, output = step_of(PARAMS, carry, x)
        outputs.append(np.asarray(output))
    return np.stack(outputs)


last_of = jax.jit(last_outputs)  # one program


def test_labels_count_once_at_the_end_of_their_sequence():
    batch = pad(SEQUENCES, labels=LABELS, T=9)
    carry = zero_carry(CELL, (3,))
    loss_sum, outputs = loss_of(carry, batch), np.asarray(outputs_of(carry, batch))
    last, want = last_of(outputs, batch.mask), np.stack([separate(i)[-1] for i in range(3)])
    np.testing.assert_allclose(last, want, rtol=1e-12)
    assert not np.allclose(outputs[-1, 1], outputs[1, 1], rtol=1e-3)  # it is the output at padding
    losses = cross_entropy(want, LABELS)
    np.testing.assert_allclose(loss_sum, losses.sum(), rtol=1e-12)
    assert batch.inputs.shape == (9, 3, 2) and float(batch.weights.sum()) == 3


def test_targets_of_every_step():
    targets = [np.arange(n) % 3 for n in LENGTHS]
    batch = pad(SEQUENCES, targets)
    assert batch.inputs.shape[0] == 7 and batch.weights is None
    loss_sum = loss_of(zero_carry(CELL, (3,)), batch)
    losses = [cross_entropy(separate(i), targets[i]).sum() for i in range(3)]
    np.testing.assert_allclose(loss_sum, sum(losses), rtol=1e-12)


def test_the_last_step_of_a_mask_with_gaps_and_of_vector_free_outputs():
    outputs = np.arange(8.0).reshape(4, 2)
    mask = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], bool)
    assert last_of(outputs, mask).tolist() == [4.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        ((SEQUENCES,), {}, "exactly one of targets .* got neither"),
        ((SEQUENCES, SEQUENCES), {"labels": LABELS}, "got both"),
        (([],), {"labels": []}, "at least one sequence"),
        (([np.ones((0, 2))],), {"labels": [1]}, "none that is empty"),
        ((SEQUENCES,), {"labels": LABELS, "T": 6}, "T must be at least 7.*got T=6"),
        ((SEQUENCES, SEQUENCES[:2]), {}, "targets must have one array.*use labels="),
        ((SEQUENCES,), {"labels": LABELS[:2]}, r"labels must have one entry per sequence, 3"),
        ((SEQUENCES, [0, 1, 2]), {}, r"got lengths \[None, None, None\]. With one label"),
    ],
)
def test_wrong_arguments_are_named(arguments, more, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(pad)(*arguments, **more)  # before jaxtyping's hook checks the types
    with pytest.raises(ValueError, match=r"mask must be \[T, \*batch\]"):
        last_outputs(np.ones((4, 2)), np.ones((3, 2), bool))


def test_few_programs_give_the_loss_and_gradient_of_every_length():
    """Lengths 1 .. 6 compile four programs; the padding changes no number."""
    estimator, carry = tbptt.full_bptt(LOSS_FN), zero_carry(CELL, (2,))
    draw = np.random.default_rng(3)

    def estimate(params, batch):
        return estimator.estimate(params, carry, batch)[:2]

    padded, unpadded = jax.jit(estimate), jax.jit(lambda *given: estimate(*given))

    for longest in range(1, 7):
        lengths = (longest, max(longest - 1, 1))
        inputs = [draw.normal(size=(n, 2)) for n in lengths]
        targets = [draw.integers(3, size=n) for n in lengths]
        got = padded(PARAMS, pad(inputs, targets, T=padded_length(longest)))
        if longest in (3, 5):  # each a program of its own
            want = unpadded(PARAMS, pad(inputs, targets))
            assert float(want[0]) > 0.1
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    sizes = [function._cache_size() for function in (padded, unpadded)]  # pyright: ignore[reportAttributeAccessIssue]
    assert sizes == [4, 2]


def test_the_length_is_the_smallest_that_suffices():
    assert [padded_length(n) for n in (1, 2, 3, 4, 5, 8, 9, 1000)] == [1, 2, 4, 4, 8, 8, 16, 1024]
    given = [padded_length(n, (30, 10, 100)) for n in (1, 10, 11, 30, 31, 100)]
    assert given == [10, 10, 30, 30, 100, 100]
    assert [padded_length(n, multiple_of=50) for n in (3, 51, 129)] == [50, 100, 300]
    with pytest.raises(ValueError, match=r"at least steps=101; got \[10, 30, 100\]\. Add one"):
        padded_length(101, (30, 10, 100))
    with pytest.raises(ValueError, match="lengths must be at least 1 step; got lengths=0"):
        padded_length(3, (0, 4))
    with pytest.raises(ValueError, match="multiple_of must be at least 1"):
        padded_length(3, multiple_of=0)
