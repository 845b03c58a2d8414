"""Synthetic tasks: every answer is where the task says it is."""

import jax
import numpy as np
import pytest

from tbptt.data import copy_stream


def test_every_answer_was_shown_memory_steps_before(key):
    T, lanes, memory = 200, 7, 10
    batch = copy_stream(key, T, lanes, memory)
    inputs, targets = np.asarray(batch.inputs.argmax(-1)), np.asarray(batch.targets)
    assert batch.inputs.shape == (T, lanes, 6) and np.all(np.asarray(batch.inputs).sum(-1) == 1)
    for lane in range(lanes):
        starts = np.flatnonzero(inputs[:, lane] == 1)
        assert np.all(np.diff(starts) == 2 * memory) and starts[0] < 2 * memory
        for s in starts[starts <= T - 2 * memory]:
            np.testing.assert_array_equal(targets[s + memory : s + 2 * memory, lane], inputs[s : s + memory, lane])
            assert np.all(inputs[s + 1 : s + memory, lane] >= 2) and np.all(targets[s : s + memory, lane] == 0)
            assert np.all(inputs[s + memory : s + 2 * memory, lane] == 0)
    assert set(np.unique(inputs)) == set(range(6))
    assert len({int(np.argmax(inputs[:, lane] == 1)) for lane in range(lanes)}) > 1  # lanes begin at other positions


def test_it_is_a_function_of_the_key_and_refuses_nonsense(key):
    a, b, c = (copy_stream(k, 50, 2, 5) for k in (key, key, jax.random.fold_in(key, 1)))
    np.testing.assert_array_equal(a.targets, b.targets)
    assert np.any(a.targets != c.targets)
    with pytest.raises(ValueError, match="memory must be at least 1"):
        copy_stream(key, 50, 2, 0)
