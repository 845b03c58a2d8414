"""Assign the rows of recordings to streams of (nearly) equal length."""

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tbptt import windows


class Span(NamedTuple):
    """Rows [start, stop) of a source, all within one recording, whose rows are [begin, end)."""

    start: int
    stop: int
    begin: int
    end: int


# (rows of each recording, number of streams) -> for each stream its spans, in order
Layout = Callable[[Sequence[int], int], tuple[tuple[Span, ...], ...]]


def even_streams(lengths: Sequence[int], streams: int) -> tuple[tuple[Span, ...], ...]:
    """Split all recordings, concatenated, into streams whose lengths differ by at most one step.

        R = sum(lengths);  stream i holds rows [i R // streams, (i + 1) R // streams)

    A recording that is split between two streams continues at the start of the next stream,
    from the initial carry.

    Args:
        lengths: rows of each recording.
        streams: static, number of streams, at most R.

    Raises:
        TypeError: streams is not an int.
        ValueError: streams < 1, or there are fewer rows than streams.
    """
    streams, R = windows.check_window("streams", streams), sum(lengths)
    if R < streams:
        raise ValueError(
            f"streams must be at most the number of rows; got streams={streams}, {R} rows. Use "
            "fewer streams"
        )
    recordings, made, i = _recordings(lengths), [], 0
    for stream in range(streams):
        at, stop, spans = stream * R // streams, (stream + 1) * R // streams, []
        while at < stop:
            while recordings[i].stop <= at:
                i += 1
            upto = min(stop, recordings[i].stop)
            spans.append(recordings[i]._replace(start=at, stop=upto))
            at = upto
        made.append(tuple(spans))
    return tuple(made)


def whole_recordings(lengths: Sequence[int], streams: int) -> tuple[tuple[Span, ...], ...]:
    """Assign whole recordings to streams: the longest first, each to the stream with fewest steps.

    No stream is longer than 4/3 of the optimum. Each stream reads its recordings in the order
    of the source.

    Args:
        lengths: rows of each recording.
        streams: static, number of streams, at most the number of recordings.

    Raises:
        TypeError: streams is not an int.
        ValueError: streams < 1, or there are fewer recordings than streams.

    References:
        Graham, *Bounds on multiprocessing timing anomalies*, SIAM J. Appl. Math. 1969,
        https://doi.org/10.1137/0117039
    """
    streams = windows.check_window("streams", streams)
    recordings = [span for span in _recordings(lengths) if span.stop > span.start]
    if len(recordings) < streams:
        raise ValueError(
            "streams must be at most the number of recordings, which are not split; got "
            f"streams={streams}, {len(recordings)} recordings. Use fewer streams, or split "
            "recordings with layout=even_streams"
        )
    assigned: list[list[Span]] = [[] for _ in range(streams)]
    heap = [(0, stream) for stream in range(streams)]
    for span in sorted(recordings, key=lambda span: (span.start - span.stop, span.start)):
        steps, stream = heapq.heappop(heap)
        assigned[stream].append(span)
        heapq.heappush(heap, (steps + span.stop - span.start, stream))
    return tuple(tuple(sorted(spans)) for spans in assigned)


def _recordings(lengths: Sequence[int]) -> list[Span]:
    spans, at = [], 0
    for length in lengths:
        spans.append(Span(at, at + length, at, at + length))
        at += length
    return spans
