"""Stream recordings from disk: chunk `i` depends on `i` alone, so a position is one integer.

A layout assigns the rows of the recordings to streams of (nearly) equal length.
"""

import bisect
import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tbptt import windows
from tbptt.data.streams.chunks import Chunk
from tbptt.data.tables.bad_samples import first_good_row, may_mask
from tbptt.data.tables.sources import Source
from tbptt.types import Batch


class Span(NamedTuple):
    """Rows [start, stop) of a source, all within one recording, whose rows are [begin, end)."""

    start: int
    stop: int
    begin: int
    end: int


# (rows of each recording, number of streams) -> for each stream its spans, in order
Layout = Callable[[Sequence[int], int], tuple[tuple[Span, ...], ...]]
# (source, span) -> the batch of the rows of the span: leaves [stop - start, ...] without a batch
# axis, resets None
MakeBatch = Callable[[Source, Span], Batch]
# Limits of a block of chunks that are read together: the overhead of a call of make_batch is about
# the cost of a thousand steps.
BLOCK_STEPS, BLOCK_BYTES = 4096, 1 << 22


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
    streams, R = windows.check_positive_int("streams", streams), sum(lengths)
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
    streams = windows.check_positive_int("streams", streams)
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


class RecordingStream:
    """A source as parallel streams, one per batch row, split into chunks of equal length.

        for i in range(len(stream)):                      one pass
            for l in range(streams):
                for t in range(length):
                    row = (i * length + t)-th row of stream l, as the layout assigns them
                    batch[t, l] = make_batch(source, row)
                    resets[t, l] = row is the first of its span
                    or, where stream l has ended:  mask[t, l] = False

    The same i gives the same chunk, in any order and in any process; state between calls is only
    a cache. Every stream begins with a reset, so passes may follow each other: chunk
    `len(stream) + i` is chunk i of the next pass.

    Args:
        source: from `open_source`, or a view of it.
        streams: static, number of parallel streams, the batch size.
        chunk: static, steps per chunk (a multiple of the estimator's k1). The last chunk of a
            pass is padded, never dropped.
        make_batch: `(source, span) -> Batch`, for example `forecast_batches("x", (1,))`; reads
            the rows that it needs from the source.
        layout: assigns rows to streams: `even_streams` or `whole_recordings`.
        rows: the streams to read in this process; None reads all. With several hosts, each
            reads its own.

    Attributes:
        streams: total number of streams.
        length:  steps per chunk.
        rows:    the streams that this process reads.
        steps:   number of steps of each stream, before padding.

    Raises:
        TypeError, ValueError: a size is not a positive int, or too large for the layout;
            make_batch did not return a Batch of the rows of the span. BadSample and other
            errors of the source: when a chunk is read.
    """

    def __init__(
        self,
        source: Source,
        streams: int,
        chunk: int,
        make_batch: MakeBatch,
        *,
        layout: Layout = even_streams,
        rows: Sequence[int] | None = None,
    ):
        self.source, self.make_batch = source, make_batch
        self.length = windows.check_positive_int("chunk", chunk)
        self._spans = layout(source.lengths, streams)
        self.streams = len(self._spans)
        self._starts = [
            np.cumsum([0, *(s.stop - s.start for s in spans)]).tolist() for spans in self._spans
        ]
        self.steps = tuple(starts[-1] for starts in self._starts)
        self.rows = tuple(range(self.streams)) if rows is None else tuple(rows)
        if (
            not self.rows
            or len(set(self.rows)) < len(self.rows)
            or not set(self.rows) <= set(range(self.streams))
        ):
            raise ValueError(
                f"rows must be distinct streams, 0 .. {self.streams - 1}, at least one; got "
                f"{self.rows}"
            )
        # Depends on all streams, not only on `rows`: all hosts of a run need the same structure.
        self._masked = may_mask(source) or any(
            steps != len(self) * self.length for steps in self.steps
        )
        self._first: dict[Span, int | None] = {}
        first = next(span for spans in self._spans for span in spans)
        self._example: tuple[list[np.ndarray], Any] = ([], None)
        # Shapes and dtypes of a batch, for streams that have ended.
        self._make_checked(first._replace(stop=first.start + 1))
        chunk_bytes = self.length * len(self.rows) * sum(leaf.nbytes for leaf in self._example[0])
        self._chunks_per_block = max(
            1, min(BLOCK_STEPS // self.length, BLOCK_BYTES // max(1, chunk_bytes))
        )
        self._last: tuple[int, Batch] | None = None

    def __len__(self) -> int:
        """Return the number of chunks per pass."""
        return -(-max(self.steps) // self.length)

    def chunk(self, i: int) -> Chunk:
        """Read chunk i: a batch `[length, len(rows), ...]` and its first step.

        The arrays are read-only numpy arrays.

        Args:
            i: 0, 1, ...; `i // len(stream)` is the pass. Step numbers continue through the passes,
                as `continuous` requires.
        """
        if isinstance(i, bool) or not isinstance(i, int | np.integer) or i < 0:
            raise ValueError(f"i must be the number of a chunk, an int >= 0; got {i!r}")
        number = int(i) % len(self)
        try:
            block, at = (
                self._block(number // self._chunks_per_block),
                number % self._chunks_per_block,
            )
        except Exception:  # the error may belong to a later chunk of the block
            block, at = self._read(number, 1), 0
        here = slice(at * self.length, (at + 1) * self.length)
        return Chunk(jax.tree.map(lambda leaf: leaf[here], block), int(i) * self.length)

    def _block(self, block: int) -> Batch:
        """Return a block of chunks, cached from the last call if it is the same block."""
        last = self._last
        if last is None or last[0] != block:
            first = block * self._chunks_per_block
            last = self._last = (
                block,
                self._read(first, min(self._chunks_per_block, len(self) - first)),
            )
        return last[1]

    def _read(self, first: int, count: int) -> Batch:
        """Read `count` chunks as one batch, starting at chunk `first` of the pass."""
        example, tree = self._example
        shape = (count * self.length, len(self.rows))
        resets, mask = np.zeros(shape, bool), np.zeros(shape, bool)
        leaves = [np.zeros((*shape, *leaf.shape[1:]), leaf.dtype) for leaf in example]
        for column, stream in enumerate(self.rows):
            for at, span, reset in self._segments(stream, first * self.length, shape[0]):
                here = slice(at, at + span.stop - span.start)
                exists, parts = self._make_checked(span)
                mask[here, column] = True if exists is None else exists
                if reset is not None and span.start <= reset < span.stop:
                    resets[at + reset - span.start, column] = True
                for whole, part in zip(leaves, parts, strict=True):
                    whole[here, column] = part
        for array in (resets, mask, *leaves):  # shared by the chunks, which are views
            array.flags.writeable = False
        return jax.tree.unflatten(tree, leaves)._replace(
            resets=resets, mask=mask if self._masked else None
        )

    def _segments(
        self, stream: int, start: int, steps: int
    ) -> Iterator[tuple[int, Span, int | None]]:
        """Yield (step after `start`, span, row of the reset) for a range of steps of a stream."""
        starts, spans = self._starts[stream], self._spans[stream]
        stop = min(start + steps, starts[-1])
        at, j = start, bisect.bisect_right(starts, start) - 1
        while at < stop:
            whole, upto = spans[j], min(stop, starts[j + 1])
            begin = whole.start + at - starts[j]
            yield (
                at - start,
                whole._replace(start=begin, stop=begin + upto - at),
                self._reset_row(whole),
            )
            at, j = upto, j + 1

    def _reset_row(self, span: Span) -> int | None:
        """Return the first unmasked row of a span: a reset on a masked step has no effect."""
        if span not in self._first:
            self._first[span] = first_good_row(self.source, span.start, span.stop)
        return self._first[span]

    def _make_checked(self, span: Span) -> tuple[Any, list[np.ndarray]]:
        """Call make_batch for a span and validate its result; return the mask and the leaves."""
        batch: Any = self.make_batch(self.source, span)
        name = getattr(self.make_batch, "__qualname__", repr(self.make_batch))
        if not isinstance(batch, Batch) or batch.resets is not None:
            what = "one with resets" if isinstance(batch, Batch) else type(batch).__name__
            raise ValueError(
                f"{name} must return a Batch without resets (the stream sets them); got {what}"
            )
        if batch.mask is not None and not may_mask(self.source):  # resets are placed by the source
            raise ValueError(
                f"{name} returned a mask, but the source has none; wrap the source in masking_bad, "
                "or use weights=0 for steps to skip"
            )
        found, tree = jax.tree.flatten(batch)
        leaves, n = [np.asarray(leaf) for leaf in found], span.stop - span.start
        example, example_tree = self._example if self._example[0] else (leaves, tree)
        if tree != example_tree:
            raise ValueError(
                f"{name} must return batches of one structure; got {tree} after {example_tree}"
            )
        for got, wanted in zip(leaves, example, strict=True):
            if got.shape[:1] != (n,):
                raise ValueError(
                    f"{name} must return the {n} steps of {span}; got an array of shape {got.shape}"
                )
            if got.shape[1:] != wanted.shape[1:] or got.dtype != wanted.dtype:
                raise ValueError(
                    f"{name} must return arrays of one shape and dtype; got "
                    f"{got.dtype}{list(got.shape)} after {wanted.dtype}{list(wanted.shape)}"
                )
        self._example = example, example_tree
        return batch.mask, leaves
