"""Write a piano roll as a MIDI file."""

from pathlib import Path

import mido
import numpy as np
from jaxtyping import Bool

TICKS_PER_QUARTER, STEPS_PER_QUARTER = 480, 4


def write(
    path: Path, roll: Bool[np.ndarray, "T P"], lowest: int, beats_per_minute: float = 80.0
) -> None:
    """Write a roll of sixteenth notes; consecutive rows with a note make one long note.

    Args:
      path: the file, which ends in .mid.
      roll: `[T, P]`, True where MIDI pitch lowest + column sounds.
    """
    edges = np.diff(
        np.concatenate([np.zeros_like(roll[:1]), roll, np.zeros_like(roll[:1])]).astype(int), axis=0
    )
    track, clock = mido.MidiTrack(), 0
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_per_minute)))
    for step, column in np.argwhere(edges != 0).tolist():
        now = step * TICKS_PER_QUARTER // STEPS_PER_QUARTER
        kind = "note_on" if edges[step, column] > 0 else "note_off"
        track.append(mido.Message(kind, note=lowest + column, velocity=72, time=now - clock))
        clock = now
    end = len(roll) * TICKS_PER_QUARTER // STEPS_PER_QUARTER
    track.append(mido.MetaMessage("end_of_track", time=end - clock))
    file = mido.MidiFile(type=0, ticks_per_beat=TICKS_PER_QUARTER)
    file.tracks.append(track)
    file.save(path)
