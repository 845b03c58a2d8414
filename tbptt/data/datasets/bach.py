"""Load Bach's four-part chorales as piano rolls, one row per sixteenth note."""

import io
import xml.etree.ElementTree as ET
import zipfile
from fractions import Fraction
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from tbptt.data.datasets.fetch import DataDamaged, fetch, read_members

LOWEST, PITCHES = 36, 46  # MIDI numbers 36 .. 81, C2 to A5: the range of the four voices
STEPS_PER_QUARTER = 4
_SEMITONE = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


class Note(NamedTuple):
    """A MIDI pitch that sounds from `start` until `end`, in sixteenth notes, as exact fractions."""

    start: Fraction
    end: Fraction
    pitch: int


class Chorales(NamedTuple):
    """Pieces of music, sorted by their path in the wheel.

    names:  such as "bwv66.6"
    rolls:  one `[T, 46]` per piece, True where the pitch 36 + column sounds
    source: description of where they came from
    """

    names: tuple[str, ...]
    rolls: tuple[Bool[np.ndarray, "T 46"], ...]
    source: str


def chorales() -> Chorales:
    """Load the 365 pieces in exactly four parts: 79,600 sixteenth-note steps, lengths 96 .. 772.

    The wheel is fetched on first use (20 MB; music21's corpus, with its encoders' permission).
    Its MusicXML is parsed here, without music21. Repeats are not expanded; pieces with
    instruments, more parts or fewer are excluded. A step holds the notes that sound at its
    start, so a repeated note looks like a held one. The few thirty-second notes that begin
    between two steps are lost. This is not the published JSB split: likelihoods in papers refer
    to other data.

    Raises:
        DataUnavailable, DataDamaged: from `fetch`; or a piece is not valid MusicXML.
    """
    wheel = fetch("music21")
    names, rolls = [], []
    for member, data in read_members(wheel, "music21/corpus/bach/bwv*.[mx][mx]l").items():
        where = f"{wheel}: {member}"
        parts = parse_parts(data if member.endswith(".xml") else _unzipped(data, where), where)
        if len(parts) == 4:
            names.append(PurePosixPath(member).stem)
            rolls.append(_roll(parts, where))
    return Chorales(tuple(names), tuple(rolls), wheel.name)


def parse_parts(data: bytes, where: str) -> list[tuple[list[Note], Fraction]]:
    """Parse the notes and the length of every part of a partwise MusicXML score.

    Grace notes have no duration and are dropped.

    Args:
        data: the score.
        where: its name, for the error message.

    Returns:
        (notes, length in sixteenth notes) of every part.

    Raises:
        DataDamaged: the data is not such a score.
    """
    try:
        root = ET.fromstring(data)
        if root.tag != "score-partwise":
            raise ValueError(f"its root is <{root.tag}>, expected <score-partwise>")
        return [_part(part) for part in root.findall("part")]
    except (ET.ParseError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataDamaged(f"{where} is not a readable MusicXML score: {error!r}") from error


def _part(part: ET.Element) -> tuple[list[Note], Fraction]:
    """Parse the measures of a part.

    <backup> and <forward> move the clock; a <chord> note begins with the previous one.
    """
    notes, divisions = [], 1  # divisions of a quarter note, set at the start of a part
    clock = begun = Fraction(0)
    for measure in part.findall("measure"):
        end = clock
        for element in measure:
            if element.tag == "attributes":
                divisions = int(element.findtext("divisions") or divisions)
            children = {child.tag: child for child in element}
            if element.tag not in ("note", "backup", "forward") or "grace" in children:
                continue
            duration = Fraction(STEPS_PER_QUARTER * int(children["duration"].text or ""), divisions)
            if element.tag == "note":
                start = begun if "chord" in children else clock
                if "pitch" in children:
                    notes.append(Note(start, start + duration, _pitch(children["pitch"])))
                begun, clock = start, max(clock, start + duration)
            else:
                clock += duration if element.tag == "forward" else -duration
            end = max(end, clock)
        clock = end
    return notes, clock


def _pitch(pitch: ET.Element) -> int:
    octave, alter = int(pitch.findtext("octave") or ""), int(pitch.findtext("alter") or 0)
    return 12 * (octave + 1) + _SEMITONE[pitch.findtext("step") or ""] + alter


def _roll(parts: list[tuple[list[Note], Fraction]], where: str) -> Bool[np.ndarray, "T 46"]:
    """Return the notes of all parts on the time grid: row t holds the notes sounding at time t."""
    lengths = {length for _, length in parts}
    if len(lengths) > 1 or next(iter(lengths)).denominator > 1:
        raise DataDamaged(
            f"{where}: parts must be of one length, in whole sixteenth notes; got "
            f"{sorted(map(str, lengths))}"
        )
    roll = np.zeros((int(lengths.pop()), PITCHES), bool)
    for note in (note for notes, _ in parts for note in notes):
        if not LOWEST <= note.pitch < LOWEST + PITCHES:
            raise DataDamaged(
                f"{where}: pitch {note.pitch} lies outside {LOWEST} .. {LOWEST + PITCHES - 1}"
            )
        roll[-(-note.start // 1) : -(-note.end // 1), note.pitch - LOWEST] = True
    return roll


def _unzipped(data: bytes, where: str) -> bytes:
    """Return the score inside a compressed MusicXML file (.mxl)."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [
                n
                for n in archive.namelist()
                if n.endswith((".xml", ".musicxml")) and not n.startswith("META-INF/")
            ]
            if len(names) != 1:
                raise DataDamaged(f"{where} must hold one score; got {names}")
            return archive.read(names[0])
    except zipfile.BadZipFile as error:
        raise DataDamaged(f"{where} is not a readable .mxl file: {error}") from error
