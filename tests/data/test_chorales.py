"""Small hand-written scores become piano rolls; sequences are packed into streams."""

import functools
import importlib
import inspect
import io
import zipfile
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest

import tbptt
from tbptt.cells.gru import GRUCarry
from tbptt.data import DataDamaged, chorales, pack
from tbptt.data.datasets.bach import LOWEST, Note, parse_parts


def note(pitch: str, duration: int, extra: str = "") -> str:
    if pitch == "rest":
        return f"<note><rest/><duration>{duration}</duration></note>"
    alter = f"<alter>{pitch.count('#') - pitch.count('b')}</alter>" if len(pitch) > 2 else ""
    sounds = f"<pitch><step>{pitch[0]}</step>{alter}<octave>{pitch[-1]}</octave></pitch>"
    return f"<note>{extra}{sounds}<duration>{duration}</duration></note>"


def score(*parts: str, divisions: int = 4) -> bytes:
    attributes = f"<attributes><divisions>{divisions}</divisions></attributes>"
    bodies = "".join(f"<part><measure>{attributes}{part}</measure></part>" for part in parts)
    return f"<score-partwise><part-list/>{bodies}</score-partwise>".encode()


def test_notes_rests_chords_and_backup() -> None:
    moves = (
        "<backup><duration>3</duration></backup>"
        + note("Bb3", 1)
        + "<forward><duration>4</duration></forward>"
    )
    grace = "<note><grace/><pitch><step>C</step><octave>5</octave></pitch></note>"
    part = (
        note("C4", 2) + note("rest", 2) + grace + note("F#4", 4) + note("A4", 4, "<chord/>") + moves
    )
    other = "</measure><measure>" + note("G2", 2)
    [(notes, length)] = parse_parts(score(part + other), "demo")
    assert (
        notes == [Note(0, 2, 60), Note(4, 8, 66), Note(4, 8, 69), Note(5, 6, 58), Note(10, 12, 43)]
        and length == 12
    )
    [(notes, length)] = parse_parts(score(note("E4", 3), divisions=6), "demo")
    assert notes == [Note(0, 2, 64)] and length == 2
    [(notes, _)] = parse_parts(score(note("E4", 3), divisions=8), "demo")
    assert notes[0].end == Fraction(3, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<score-partwise><part>", "no element found"),
        (b"<score-timewise/>", "its root is <score-timewise>, expected <score-partwise>"),
        (score("<note><rest/></note>"), "KeyError.*duration"),
        (score(note("H4", 1)), "KeyError.*H"),
        (score(note("C4", 1), divisions=0), "ZeroDivision"),
    ],
)
def test_an_invalid_score_is_reported(data: bytes, message: str) -> None:
    with pytest.raises(DataDamaged, match=f"demo is not a readable MusicXML score: .*{message}"):
        parse_parts(data, "demo")


def mxl(data: bytes, name: str = "piece.xml") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr(name, data)
    return buffer.getvalue()


def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes]) -> None:
    path = tmp_path / "music21.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"music21/corpus/bach/{name}", content)
    monkeypatch.setattr(
        importlib.import_module("tbptt.data.datasets.bach"), "fetch", lambda name: path
    )


FOUR = score(
    note("C5", 4), note("E4", 1) + note("F4", 3), note("G3", 4), note("C2", 2) + note("rest", 2)
)


def test_four_part_pieces_become_rolls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    split = score(
        *[note("D4", 3) + note("E4", 5)] * 4, divisions=8
    )  # thirty-seconds: E4 begins between two steps
    wheel(monkeypatch, tmp_path, {
        "bwv2.mxl": mxl(FOUR), "bwv1.xml": FOUR, "bwv3.mxl": mxl(split, "piece.musicxml"),
        "bwv4.mxl": mxl(score(*[note("C4", 4)] * 5)), "bwv5.krn": b"**kern", "other.xml": FOUR,
    })  # fmt: skip
    found = chorales()
    assert found.names == ("bwv1", "bwv2", "bwv3") and found.source == "music21.whl"
    sounding = [sorted(np.flatnonzero(row) + LOWEST) for row in found.rolls[0]]
    assert sounding == [[36, 55, 64, 72], [36, 55, 65, 72], [55, 65, 72], [55, 65, 72]]
    np.testing.assert_array_equal(found.rolls[0], found.rolls[1])
    assert [list(np.flatnonzero(row) + LOWEST) for row in found.rolls[2]] == [
        [62],
        [62],
        [64],
        [64],
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (mxl(FOUR)[:40], "not a readable .mxl file"),
        (mxl(FOUR, "piece.txt"), r"must hold one score; got \[\]"),
        (
            mxl(score(note("C4", 4), *[note("C4", 3)] * 3)),
            r"parts must be of one length.*got \['3', '4'\]",
        ),
        (mxl(score(*[note("C4", 3)] * 4, divisions=8)), "in whole sixteenth notes; got"),
        (mxl(score(*[note("B1", 4)] * 4)), r"pitch 35 lies outside 36 \.\. 81"),
    ],
    ids=[
        "cut",
        "no score",
        "lengths",
        "fractions",
        "pitch",
    ],  # not the bytes: a zip file holds the time of day
)
def test_a_damaged_piece_is_reported(
    monkeypatch, tmp_path: Path, data: bytes, message: str
) -> None:
    wheel(monkeypatch, tmp_path, {"bwv9.mxl": data})
    with pytest.raises(
        DataDamaged, match=rf"music21\.whl: music21/corpus/bach/bwv9\.mxl.*{message}"
    ):
        chorales()


def test_pack_appends_each_sequence_to_the_shortest_stream() -> None:
    xs = [np.full((length, 1), name, float) for name, length in ((1, 3), (2, 5), (3, 1), (4, 2))]
    batch = pack(xs, [2 * x for x in xs], 2, 7)
    np.testing.assert_array_equal(
        batch.inputs[..., 0].T, [[1, 1, 1, 3, 4, 4, 0], [2, 2, 2, 2, 2, 0, 0]]
    )
    np.testing.assert_array_equal(batch.resets.T, [[1, 0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.mask, batch.inputs[..., 0] > 0)
    np.testing.assert_array_equal(batch.targets, 2 * batch.inputs)


def test_packed_sequences_have_the_outputs_of_separate_ones(key) -> None:
    rng, cell = np.random.default_rng(0), tbptt.GRU(2, 3)
    params, zeros = jax.jit(cell.init)(key), np.zeros((2, 3))
    xs = [rng.normal(size=(length, 2)) for length in (4, 6, 3, 5)]
    packed = pack(xs, xs, 2, 16)
    unroll, step = (
        jax.jit(functools.partial(tbptt.unroll, cell)),
        jax.jit(lambda *given: cell(*given)),
    )
    _, ys = unroll(params, GRUCarry(zeros), packed.inputs, resets=packed.resets, mask=packed.mask)
    ys = np.asarray(ys)
    starts = [(0, 0), (0, 1), (4, 0), (6, 1)]
    for x, (start, stream) in zip(xs, starts, strict=True):
        carry = GRUCarry(zeros[0])
        for t, row in enumerate(x):
            carry, alone = step(params, carry, row)
            np.testing.assert_allclose(ys[start + t, stream], alone, atol=1e-12)


@pytest.mark.parametrize(
    ("lengths", "goals", "T", "message"),
    [
        ([], [], 4, "at least one"),
        ([3, 0], [3, 0], 4, "none empty"),
        ([3, 2], [3, 1], 4, r"got 2 of lengths \[3, 2\] and 2 of lengths \[3, 1\]"),
        ([3, 3, 2], [3, 3, 2], 4, "longest of 2 streams has 5 steps, more than T=4; T=7 is enough"),
    ],
)
def test_pack_errors(lengths, goals, T: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack([np.zeros((n, 1)) for n in lengths], [np.zeros((n, 1)) for n in goals], 2, T)


def test_pack_names_the_way_to_give_one_label_per_sequence() -> None:
    with pytest.raises(ValueError, match=r"lengths \[None\]\. With one label .*pad\(labels="):
        inspect.unwrap(pack)([np.zeros((3, 1))], [1], 2, 4)
