"""The continual Reber grammar against an independent automaton and closed forms."""

import math

import jax
import numpy as np
import pytest

from tbptt.data import REBER_SYMBOLS, continual_reber, reber_recalls

# Reber's grammar as an automaton, state -> {symbol: next state}. Its loops cross, so a regular
# expression would be unreadable.
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
    """Return the states along a word; raise KeyError where the grammar has no transition."""
    states = ["start"]
    for symbol in word:
        states.append(INNER[states[-1]][symbol])
    return states


def strings(symbols):
    """Split a stream into whole strings and the rest.

    A string ends with the E after the T or P that follows an inner E.
    """
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
    sequences = [
        "".join(REBER_SYMBOLS[i] for i in sequence) for sequence in batch.inputs.argmax(-1).T
    ]
    return batch, sequences, recalls


def test_every_string_belongs_to_the_grammar_and_repeats_its_second_symbol(stream):
    batch, sequences, _ = stream
    assert np.all(batch.inputs.sum(-1) == 1)
    total = 0
    for sequence in sequences:
        words, rest = strings(sequence)
        assert "".join(words) + rest == sequence and len(rest) < 100
        for word in words:
            assert word[0] == "B" and word[1] in "TP" and word[-2] == word[1] and word[-1] == "E"
            assert inner_steps(word[2:-2])[-1] == "ended" and len(word) >= 9
        total += len(words)
    assert (
        total > 2000 and len({sequence[:40] for sequence in sequences}) == 8
    )  # all sequences differ


def test_every_alternative_has_probability_one_half(stream):
    taken, outer = {}, []
    for sequence in stream[1]:
        for word in strings(sequence)[0]:
            outer.append(word[1])
            for state, symbol in zip(inner_steps(word[2:-2]), word[2:-2], strict=False):
                taken.setdefault(state, []).append(symbol)
    for state, symbols in [*taken.items(), ("outer", outer)]:
        for symbol in INNER.get(state, {"T": 0, "P": 0}):
            share, ways = symbols.count(symbol) / len(symbols), len(set(symbols))
            assert ways == len(INNER.get(state, "TP")) and abs(share - 1 / ways) < 4 / math.sqrt(
                len(symbols)
            )


def test_targets_are_the_next_symbols_and_recalls_mark_the_second_c(stream):
    batch, sequences, marked = stream
    np.testing.assert_array_equal(batch.targets[:-1], np.argmax(batch.inputs, -1)[1:])
    for sequence, word in enumerate(sequences):
        at = 0
        for string in strings(word)[0]:
            at += len(string)
            assert (
                marked[at - 3, sequence]
                and REBER_SYMBOLS[int(batch.targets[at - 3, sequence])] == string[1]
            )
        whole = strings(word)[0]
        assert marked[:at, sequence].sum() == len(whole)


def test_the_mean_length_and_the_best_losses_equal_the_docstring():
    """Solve linear equations for the mean length and number of choices; a choice costs log 2."""
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


def test_the_sampled_mean_length_is_twelve(stream):
    lengths = [len(word) for sequence in stream[1] for word in strings(sequence)[0]]
    assert np.mean(lengths) == pytest.approx(12, abs=4 * np.std(lengths) / math.sqrt(len(lengths)))
