"""Split pieces into three parts, so that all settings of one tune are in the same part.

Bach set some tunes several times, and the corpus contains some settings twice, in another key or
with another upbeat.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

CHORDS = 4  # consecutive chords of one passage


def passages(roll: Bool[np.ndarray, "T P"]) -> set[tuple[tuple[int, ...], ...]]:
    """Return all sequences of CHORDS chords, as intervals from the bass of the first."""
    chords = [tuple(np.flatnonzero(row).tolist()) for row in roll]
    chords = [
        chord for i, chord in enumerate(chords) if chord and (i == 0 or chord != chords[i - 1])
    ]
    found = set()
    for i in range(len(chords) - CHORDS + 1):
        bass = chords[i][0]
        found.add(tuple(tuple(note - bass for note in chord) for chord in chords[i : i + CHORDS]))
    return found


def families(rolls: Sequence[Bool[np.ndarray, "T P"]], share: float = 0.3) -> list[list[int]]:
    """Group pieces that share the fraction `share` of the shorter one's passages."""
    sets = [passages(roll) for roll in rolls]
    family = list(range(len(rolls)))
    for i, a in enumerate(sets):
        for j in range(i):
            least = min(len(a), len(sets[j]))
            if least and family[i] != family[j] and len(a & sets[j]) >= share * least:
                old, new = family[i], family[j]
                family = [new if f == old else f for f in family]
    return [[i for i, f in enumerate(family) if f == name] for name in sorted(set(family))]


def split(
    groups: Sequence[Sequence[int]], seed: int, held_out: float = 0.1
) -> tuple[list[int], list[int], list[int]]:
    """Assign whole families to the test part until it has the fraction `held_out` of the pieces,
    then to the validation part until it has, and the rest to the training part.

    Returns:
      (train, valid, test), indices in ascending order.
    """
    pieces = sum(len(group) for group in groups)
    valid, test, train = [], [], []
    for index in np.random.default_rng(seed).permutation(len(groups)):
        part = next((part for part in (test, valid) if len(part) < held_out * pieces), train)
        part.extend(groups[index])
    return sorted(train), sorted(valid), sorted(test)
