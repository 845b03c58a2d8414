"""Which steps go on which lane: recordings laid out on lanes as evenly as can be."""

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tbptt import windows


class Span(NamedTuple):
    """Rows [start, stop) of a source, within the one recording that has its rows [begin, end)."""

    start: int
    stop: int
    begin: int
    end: int


# (rows of each recording, lanes) -> for each lane the spans that it runs through, one after another
Layout = Callable[[Sequence[int], int], tuple[tuple[Span, ...], ...]]


def even_streams(lengths: Sequence[int], lanes: int) -> tuple[tuple[Span, ...], ...]:
    """Cuts all recordings, one after another, into lanes of equal length, to one step.

        R = sum(lengths);  lane l runs through rows [l R // lanes, (l + 1) R // lanes)

    A recording in which a lane ends goes on at the start of the next lane, from the initial carry.

    Args:
        lengths: rows of each recording.
        lanes: static, at most R.

    Raises:
        TypeError: lanes is not an int.
        ValueError: lanes < 1, or there are fewer rows than lanes.
    """
    lanes, R = windows.check_window("lanes", lanes), sum(lengths)
    if R < lanes:
        raise ValueError(f"lanes must be at most the number of rows; got lanes={lanes}, {R} rows. Take fewer lanes")
    recordings, made, i = _recordings(lengths), [], 0
    for lane in range(lanes):
        at, stop, spans = lane * R // lanes, (lane + 1) * R // lanes, []
        while at < stop:
            while recordings[i].stop <= at:
                i += 1
            upto = min(stop, recordings[i].stop)
            spans.append(recordings[i]._replace(start=at, stop=upto))
            at = upto
        made.append(tuple(spans))
    return tuple(made)


def whole_recordings(lengths: Sequence[int], lanes: int) -> tuple[tuple[Span, ...], ...]:
    """Deals out the recordings, each one whole: the longest first, always to the lane that has the fewest steps.

    No lane is then longer than 4/3 of the least possible. Each lane runs through its recordings in the source's order.

    Args:
        lengths: rows of each recording.
        lanes: static, at most the number of recordings.

    Raises:
        TypeError: lanes is not an int.
        ValueError: lanes < 1, or there are fewer recordings than lanes.

    References:
        Graham, *Bounds on multiprocessing timing anomalies*, SIAM J. Appl. Math. 1969, https://doi.org/10.1137/0117039
    """
    lanes = windows.check_window("lanes", lanes)
    recordings = [span for span in _recordings(lengths) if span.stop > span.start]
    if len(recordings) < lanes:
        raise ValueError(
            f"lanes must be at most the number of recordings, each of which stays whole; got lanes={lanes}, "
            f"{len(recordings)} recordings. Take fewer lanes, or cut recordings: layout=even_streams"
        )
    dealt: list[list[Span]] = [[] for _ in range(lanes)]
    heap = [(0, lane) for lane in range(lanes)]
    for span in sorted(recordings, key=lambda span: (span.start - span.stop, span.start)):
        steps, lane = heapq.heappop(heap)
        dealt[lane].append(span)
        heapq.heappush(heap, (steps + span.stop - span.start, lane))
    return tuple(tuple(sorted(spans)) for spans in dealt)


def _recordings(lengths: Sequence[int]) -> list[Span]:
    spans, at = [], 0
    for length in lengths:
        spans.append(Span(at, at + length, at, at + length))
        at += length
    return spans
