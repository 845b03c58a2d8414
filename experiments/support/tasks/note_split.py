"""Training, validation and test pieces, so that no piece is in two of them under two names.

Bach set one tune several times, and the corpus holds some settings more than once, in another key or with another upbeat.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

CHORDS = 4  # neighbouring chords that must agree to count as one passage


def passages(roll: Bool[np.ndarray, "T P"]) -> set[tuple[tuple[int, ...], ...]]:
    """Returns all successions of CHORDS chords, whatever their rhythm and key: intervals from the first chord's bass."""
    chords = [tuple(np.flatnonzero(row).tolist()) for row in roll]
    chords = [chord for i, chord in enumerate(chords) if chord and (i == 0 or chord != chords[i - 1])]
    found = set()
    for i in range(len(chords) - CHORDS + 1):
        bass = chords[i][0]
        found.add(tuple(tuple(note - bass for note in chord) for chord in chords[i : i + CHORDS]))
    return found


def families(rolls: Sequence[Bool[np.ndarray, "T P"]], share: float = 0.3) -> list[list[int]]:
    """Groups pieces that have at least `share` of the shorter one's passages in common, directly or through others."""
    sets = [passages(roll) for roll in rolls]
    family = list(range(len(rolls)))
    for i, a in enumerate(sets):
        for j in range(i):
            least = min(len(a), len(sets[j]))
            if least and family[i] != family[j] and len(a & sets[j]) >= share * least:
                old, new = family[i], family[j]
                family = [new if f == old else f for f in family]
    return [[i for i, f in enumerate(family) if f == name] for name in sorted(set(family))]


def split(groups: Sequence[Sequence[int]], seed: int, held_out: float = 0.1) -> tuple[list[int], list[int], list[int]]:
    """Deals whole families out: to the test until it has its share of the pieces, to validation, then to training.

    Returns:
      (train, valid, test), indices in ascending order.
    """
    pieces = sum(len(group) for group in groups)
    valid, test, train = [], [], []
    for index in np.random.default_rng(seed).permutation(len(groups)):
        part = next((part for part in (test, valid) if len(part) < held_out * pieces), train)
        part.extend(groups[index])
    return sorted(train), sorted(valid), sorted(test)
