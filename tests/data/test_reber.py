"""The continual embedded Reber grammar, against an automaton written from the grammar's picture, and its closed forms."""

import math

import jax
import numpy as np
import pytest

from tbptt.data import REBER_SYMBOLS, continual_reber, reber_recalls

# Reber's grammar by sets of states, as regular expressions write it: B ( T S* X ( X T* V P )* ... ) has loops that cross,
# so an automaton: state -> {symbol: next state}, named by where one has come from.
INNER = {
    "start": {"B": "begun"},
    "begun": {"T": "upper", "P": "lower"},
    "upper": {"S": "upper", "X": "upper out"},
    "upper out": {"X": "lower", "S": "ending"},
    "lower": {"T": "lower", "V": "lower out"},
    "lower out": {"P": "upper out", "V": "ending"},
    "ending": {"E": "ended"},
}


def inner_steps(word):
    """The states on the way through a word; raises KeyError where the grammar does not go on."""
    states = ["start"]
    for symbol in word:
        states.append(INNER[states[-1]][symbol])
    return states


def strings(symbols):
    """Cuts a stream into whole strings: each ends with the E after the T or P that follows an inner E."""
    found, start = [], 0
    while (inner_end := symbols.find("E", start)) >= 0 and inner_end + 2 < len(symbols):
        found.append(symbols[start : inner_end + 3])
        start = inner_end + 3
    return found, symbols[start:]


@pytest.fixture(scope="module")
def stream():
    def draw(key):
        batch = continual_reber(key, 4000, 8)
        return batch, reber_recalls(batch)

    batch, recalls = jax.tree.map(np.asarray, jax.jit(draw)(jax.random.key(0)))
    lanes = ["".join(REBER_SYMBOLS[i] for i in lane) for lane in batch.inputs.argmax(-1).T]
    return batch, lanes, recalls


def test_every_string_is_of_the_grammar_and_says_its_second_symbol_again(stream):
    batch, lanes, _ = stream
    assert np.all(batch.inputs.sum(-1) == 1)
    total = 0
    for lane in lanes:
        words, rest = strings(lane)
        assert "".join(words) + rest == lane and len(rest) < 100
        for word in words:
            assert word[0] == "B" and word[1] in "TP" and word[-2] == word[1] and word[-1] == "E"
            assert inner_steps(word[2:-2])[-1] == "ended" and len(word) >= 9
        total += len(words)
    assert total > 2000 and len({lane[:40] for lane in lanes}) == 8  # lanes differ


def test_every_way_is_taken_half_of_the_time(stream):
    taken, outer = {}, []
    for lane in stream[1]:
        for word in strings(lane)[0]:
            outer.append(word[1])
            for state, symbol in zip(inner_steps(word[2:-2]), word[2:-2], strict=False):
                taken.setdefault(state, []).append(symbol)
    for state, symbols in [*taken.items(), ("outer", outer)]:
        for symbol in INNER.get(state, {"T": 0, "P": 0}):
            share, ways = symbols.count(symbol) / len(symbols), len(set(symbols))
            assert ways == len(INNER.get(state, "TP")) and abs(share - 1 / ways) < 4 / math.sqrt(len(symbols))


def test_targets_follow_and_recalls_are_the_second_c(stream):
    batch, lanes, marked = stream
    np.testing.assert_array_equal(batch.targets[:-1], np.argmax(batch.inputs, -1)[1:])
    for lane, word in enumerate(lanes):
        at = 0
        for string in strings(word)[0]:
            at += len(string)
            assert marked[at - 3, lane] and REBER_SYMBOLS[int(batch.targets[at - 3, lane])] == string[1]
        whole = strings(word)[0]
        assert marked[:at, lane].sum() == len(whole)


def test_the_mean_length_and_the_best_losses_are_those_of_the_docstring():
    """Mean number of symbols from each state to the end, by linear equations; a choice of two costs log 2."""
    names = list(INNER)
    A, choices = np.eye(len(names)), np.asarray([len(INNER[name]) == 2 for name in names], float)
    for i, name in enumerate(names):
        for then in INNER[name].values():
            if then != "ended":
                A[i, names.index(then)] -= 1 / len(INNER[name])
    length, chosen = np.linalg.solve(A, np.ones(len(names)))[0], np.linalg.solve(A, choices)[0]
    assert length == pytest.approx(8) and chosen == pytest.approx(6)
    assert (chosen + 1) / (length + 4) * math.log(2) == pytest.approx(0.404, abs=5e-4)
    assert (chosen + 2) / (length + 4) * math.log(2) == pytest.approx(0.462, abs=5e-4)


def test_the_stream_has_that_length(stream):
    lengths = [len(word) for lane in stream[1] for word in strings(lane)[0]]
    assert np.mean(lengths) == pytest.approx(12, abs=4 * np.std(lengths) / math.sqrt(len(lengths)))
