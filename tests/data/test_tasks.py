"""The synthetic tasks place answers as documented, and baselines have the documented losses."""

import collections
import math

import jax
import numpy as np
import pytest
import scipy.special

from tbptt.data import (
    ORDER_SYMBOLS,
    adding,
    copy_baseline,
    copy_memory,
    copy_stream,
    temporal_order,
)


def drawn(task, *keys, **sizes):
    """Return batches as numpy arrays, one for each key, from one compiled program."""
    draw = jax.jit(lambda key: task(key, **sizes))
    return [jax.tree.map(np.asarray, draw(key)) for key in keys]


def test_copy_stream_targets_are_inputs_memory_steps_before(key):
    T, batch_size, memory = 200, 7, 10
    (batch,) = drawn(copy_stream, key, T=T, batch_size=batch_size, memory=memory)
    inputs, targets = batch.inputs.argmax(-1), batch.targets
    assert batch.inputs.shape == (T, batch_size, 6) and np.all(batch.inputs.sum(-1) == 1)
    for b in range(batch_size):
        starts = np.flatnonzero(inputs[:, b] == 1)
        assert np.all(np.diff(starts) == 2 * memory) and starts[0] < 2 * memory
        for s in starts[starts <= T - 2 * memory]:
            np.testing.assert_array_equal(
                targets[s + memory : s + 2 * memory, b], inputs[s : s + memory, b]
            )
            assert np.all(inputs[s + 1 : s + memory, b] >= 2) and np.all(
                targets[s : s + memory, b] == 0
            )
            assert np.all(inputs[s + memory : s + 2 * memory, b] == 0)
    assert set(np.unique(inputs)) == set(range(6))
    assert (
        len({int(np.argmax(inputs[:, b] == 1)) for b in range(batch_size)}) > 1
    )  # sequences begin at different positions


def test_copy_stream_depends_on_the_key_alone_and_validates_memory(key):
    a, b, c = drawn(copy_stream, key, key, jax.random.key(1), T=50, batch_size=2, memory=5)
    np.testing.assert_array_equal(a.targets, b.targets)
    assert np.any(a.targets != c.targets)
    with pytest.raises(ValueError, match="memory must be at least 1"):
        copy_stream(key, 50, 2, 0)


def test_adding_targets_are_the_sum_of_the_two_marked_numbers(key):
    T, batch_size = 21, 4000
    (batch,) = drawn(adding, key, T=T, batch_size=batch_size)
    values, marks = np.moveaxis(batch.inputs, -1, 0)
    for b in range(200):  # in plain Python
        first, second = (t for t in range(T) if marks[t, b] == 1)
        assert first < T // 2 <= second
        assert batch.targets[:, b, 0] == pytest.approx(values[first, b] + values[second, b])
    assert set(np.unique(marks)) == {0, 1} and np.all(
        marks.any(axis=1)
    )  # every step is marked in some b
    assert np.abs(values).max() < 1 and np.mean(values) == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(
        batch.weights, np.arange(T)[:, None] == np.full(batch_size, T - 1)
    )
    target = batch.targets[-1, :, 0]
    error = {"constant": target, "second only": target - (values * marks)[T // 2 :].sum(0)}
    deviation = 4 / math.sqrt(
        batch_size
    )  # four standard errors, the squares' standard deviation being below 1
    assert np.mean(error["constant"] ** 2) == pytest.approx(2 / 3, abs=deviation)
    assert np.mean(error["second only"] ** 2) == pytest.approx(1 / 3, abs=deviation)
    with pytest.raises(ValueError, match="T must be at least 2"):
        adding(key, 1, 3)


@pytest.mark.parametrize(
    ("delay", "symbols", "alphabet"),
    [(11, 10, 8), pytest.param(30, 5, 4, marks=pytest.mark.exhaustive), (2, 1, 1)],
)
def test_copy_memory_targets_are_inputs_delay_steps_before(key, delay, symbols, alphabet):
    (batch,) = drawn(
        copy_memory, key, delay=delay, batch_size=50, symbols=symbols, alphabet=alphabet
    )
    inputs, targets = batch.inputs.argmax(-1), batch.targets
    assert batch.inputs.shape == (delay + symbols, 50, alphabet + 2) and np.all(
        batch.inputs.sum(-1) == 1
    )
    for b in range(50):
        shown, answers = (
            [int(s) for s in inputs[:symbols, b]],
            [int(s) for s in targets[-symbols:, b]],
        )
        assert shown == answers and all(2 <= s < alphabet + 2 for s in shown)
        assert list(inputs[symbols:, b]) == [0] * (delay - symbols - 1) + [1] + [0] * symbols
        assert list(targets[:delay, b]) == [0] * delay
    assert set(np.unique(inputs)) == set(range(alphabet + 2))


def test_memoryless_model_has_the_loss_of_copy_baseline(key):
    delay, S, A = 20, 10, 8
    (batch,) = drawn(copy_memory, key, delay=delay, batch_size=3)
    # The model has the correct timing, and predicts symbols 2 .. A+1 with equal probability.
    answering = (np.arange(delay + S) >= delay)[:, None]
    blank, symbol = np.eye(A + 2)[0], np.r_[0, 0, np.full(A, 1 / A)]
    logits = np.broadcast_to(
        np.log(np.where(answering, symbol, blank) + 1e-30)[:, None], (delay + S, 3, A + 2)
    )
    loss = -np.take_along_axis(scipy.special.log_softmax(logits, -1), batch.targets[..., None], -1)
    assert (
        float(loss.mean())
        == pytest.approx(copy_baseline(delay), rel=1e-9)
        == pytest.approx(10 * math.log(8) / 30)
    )
    assert copy_baseline(510) == pytest.approx(0.0400, abs=5e-5)  # Tallec and Ollivier's T = 500
    with pytest.raises(ValueError, match="delay must be more than symbols=10 steps.*got delay=10"):
        copy_memory(key, 10, 3)


def test_temporal_order_class_is_the_order_of_the_two_letters(key):
    (batch,) = drawn(temporal_order, key, T=50, batch_size=3000)
    letters = batch.inputs.argmax(-1)
    assert batch.inputs.shape == (50, 3000, 8) and np.all(batch.inputs.sum(-1) == 1)
    seen, steps = collections.Counter(), collections.Counter()
    for b in range(3000):
        word = "".join(ORDER_SYMBOLS[i] for i in letters[:, b])
        assert word[0] == "B" and word[-1] == "E" and "B" not in word[1:] and "E" not in word[:-1]
        first, second = (t for t in range(50) if word[t] in "XY")
        assert 3 <= first <= 12 and 25 <= second <= 40
        assert batch.targets[-1, b] == ("XX", "XY", "YX", "YY").index(word[first] + word[second])
        seen[int(batch.targets[-1, b])] += 1
        steps.update((first, second))
    assert set(steps) == {*range(3, 13), *range(25, 41)} and set(np.unique(letters)) == set(
        range(8)
    )
    assert all(abs(count / 3000 - 1 / 4) < 0.04 for count in seen.values()) and len(seen) == 4
    np.testing.assert_array_equal(batch.targets[0], batch.targets[-1])
    np.testing.assert_array_equal(batch.weights, np.arange(50)[:, None] == np.full(3000, 49))
    with pytest.raises(ValueError, match="within 1 .. T-2 = 38"):
        temporal_order(key, 40, 3)
