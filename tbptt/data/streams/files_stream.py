"""Recordings on disk as lanes that run side by side: chunk i is a pure function of i, so a position is one integer."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from tbptt import windows
from tbptt.data.streams.chunks import Chunk
from tbptt.data.streams.layout import Layout, Span, even_streams
from tbptt.data.tables.bad_samples import first_good_row, may_mask
from tbptt.data.tables.sources import Source
from tbptt.types import Batch

# (source, span) -> the batch of the span's rows, without an axis of lanes: leaves [stop - start, ...], resets None
MakeBatch = Callable[[Source, Span], Batch]

# A call of make_batch costs about as much for one step as for a thousand: so chunks are read several at a time.
TOGETHER_STEPS, TOGETHER_BYTES = 4096, 1 << 22


class RecordingStream:
    """A source in lanes, cut into chunks of equal length.

        for i in range(len(stream)):                      one pass
            for l in range(lanes):
                for t in range(length):
                    row = (i * length + t)-th row of lane l, as the layout has them
                    batch[t, l] = make_batch(source, row);  resets[t, l] = row is the first of its span
                    or, where lane l has ended:  mask[t, l] = False

    The same i gives the same chunk, in any order, in any process: what is kept between calls only saves time. Every lane
    begins with a reset, so one pass may follow another: chunk `len(stream) + i` is chunk i, in the next pass.

    Args:
        source: what `open_source` gives, or a view of it.
        lanes: static, the batch axis.
        chunk: static, steps a chunk (a multiple of the estimator's k1). The last chunk of a pass is padded, never dropped.
        make_batch: `(source, span) -> Batch`, for example `forecast_batches("x", (1,))`; reads what it needs of the source.
        layout: which rows go on which lane: `even_streams`, or `whole_recordings`.
        rows: which of the lanes are read here; None reads all. For several hosts, each of which reads its own.

    Attributes:
        lanes, length: lanes in all, and steps a chunk
        rows:          the lanes that are read here
        steps:         how many steps each lane has, before padding

    Raises:
        TypeError, ValueError: sizes are not positive ints, or more than the layout can serve; what make_batch returned
            is no Batch of the span's rows. BadSample and other faults of the source, when a chunk is read.
    """

    def __init__(
        self,
        source: Source,
        lanes: int,
        chunk: int,
        make_batch: MakeBatch,
        *,
        layout: Layout = even_streams,
        rows: Sequence[int] | None = None,
    ):
        self.source, self.make_batch = source, make_batch
        self.length = windows.check_window("chunk", chunk)
        self._spans = layout(source.lengths, lanes)
        self.lanes = len(self._spans)
        self._starts = [np.cumsum([0, *(s.stop - s.start for s in spans)]).tolist() for spans in self._spans]
        self.steps = tuple(starts[-1] for starts in self._starts)
        self.rows = tuple(range(self.lanes)) if rows is None else tuple(rows)
        if not self.rows or len(set(self.rows)) < len(self.rows) or not set(self.rows) <= set(range(self.lanes)):
            raise ValueError(f"rows must be distinct lanes, 0 .. {self.lanes - 1}, at least one; got {self.rows}")
        # Decided from all lanes, not from the ones read here: the hosts of a run must agree on what a batch has.
        self._masked = may_mask(source) or any(steps != len(self) * self.length for steps in self.steps)
        self._first: dict[Span, int | None] = {}
        first = next(span for spans in self._spans for span in spans)
        self._example: tuple[list[np.ndarray], Any] = ([], None)
        self._checked(first._replace(stop=first.start + 1))  # what batches look like, for lanes that have ended
        chunk_bytes = self.length * len(self.rows) * sum(leaf.nbytes for leaf in self._example[0])
        self._together = max(1, min(TOGETHER_STEPS // self.length, TOGETHER_BYTES // max(1, chunk_bytes)))
        self._last: tuple[int, Batch] | None = None

    def __len__(self) -> int:
        """Chunks a pass."""
        return -(-max(self.steps) // self.length)

    def chunk(self, i: int) -> Chunk:
        """Reads chunk i: a batch `[length, len(rows), ...]` of read-only numpy arrays, and the step at which it starts.

        Args:
            i: 0, 1, ...; `i // len(stream)` is the pass. Steps are numbered on through the passes, so `continuous` follows.
        """
        if isinstance(i, bool) or not isinstance(i, int | np.integer) or i < 0:
            raise ValueError(f"i must be the number of a chunk, 0, 1, ...; got {i!r}")
        number = int(i) % len(self)
        try:
            block, at = self._block(number // self._together), number % self._together
        except Exception:  # the fault may lie in a later chunk of the block, and that one is to report it
            block, at = self._read(number, 1), 0
        here = slice(at * self.length, (at + 1) * self.length)
        return Chunk(jax.tree.map(lambda leaf: leaf[here], block), int(i) * self.length)

    def _block(self, block: int) -> Batch:
        """Returns the chunks that are read together, from the last call if they are the same ones."""
        last = self._last
        if last is None or last[0] != block:
            first = block * self._together
            last = self._last = block, self._read(first, min(self._together, len(self) - first))
        return last[1]

    def _read(self, first: int, count: int) -> Batch:
        """Reads `count` chunks as one batch, from the pass's chunk `first` on."""
        example, tree = self._example
        shape = (count * self.length, len(self.rows))
        resets, mask = np.zeros(shape, bool), np.zeros(shape, bool)
        leaves = [np.zeros((*shape, *leaf.shape[1:]), leaf.dtype) for leaf in example]
        for column, lane in enumerate(self.rows):
            for at, span, reset in self._pieces(lane, first * self.length, shape[0]):
                here = slice(at, at + span.stop - span.start)
                exists, parts = self._checked(span)
                mask[here, column] = True if exists is None else exists
                if reset is not None and span.start <= reset < span.stop:
                    resets[at + reset - span.start, column] = True
                for whole, part in zip(leaves, parts, strict=True):
                    whole[here, column] = part
        for array in (resets, mask, *leaves):  # several chunks are views of them
            array.flags.writeable = False
        return jax.tree.unflatten(tree, leaves)._replace(resets=resets, mask=mask if self._masked else None)

    def _pieces(self, lane: int, start: int, steps: int) -> Iterator[tuple[int, Span, int | None]]:
        """Yields (step from `start` on, span, row of the reset) for what a lane has in its steps from `start` on."""
        starts, spans = self._starts[lane], self._spans[lane]
        stop = min(start + steps, starts[-1])
        at, j = start, bisect.bisect_right(starts, start) - 1
        while at < stop:
            whole, upto = spans[j], min(stop, starts[j + 1])
            begin = whole.start + at - starts[j]
            yield at - start, whole._replace(start=begin, stop=begin + upto - at), self._reset_row(whole)
            at, j = upto, j + 1

    def _reset_row(self, span: Span) -> int | None:
        """Returns the first row of a lane's span that exists: a reset on a masked step would not happen."""
        if span not in self._first:
            self._first[span] = first_good_row(self.source, span.start, span.stop)
        return self._first[span]

    def _checked(self, span: Span) -> tuple[Any, list[np.ndarray]]:
        """Makes the batch of a span and checks what the caller's function returned; its mask, and its leaves."""
        batch: Any = self.make_batch(self.source, span)
        name = getattr(self.make_batch, "__qualname__", repr(self.make_batch))
        if not isinstance(batch, Batch) or batch.resets is not None:
            what = "one with resets" if isinstance(batch, Batch) else type(batch).__name__
            raise ValueError(f"{name} must return a Batch without resets (the stream sets them); got {what}")
        if batch.mask is not None and not may_mask(self.source):  # then no reset would wait for the first step that exists
            raise ValueError(
                f"{name} returned a mask, which only a source of masking_bad has; use weights=0 for steps to skip"
            )
        found, tree = jax.tree.flatten(batch)
        leaves, n = [np.asarray(leaf) for leaf in found], span.stop - span.start
        example, example_tree = self._example if self._example[0] else (leaves, tree)
        if tree != example_tree:
            raise ValueError(f"{name} must return batches of one structure; got {tree} after {example_tree}")
        for got, wanted in zip(leaves, example, strict=True):
            if got.shape[:1] != (n,):
                raise ValueError(f"{name} must return the {n} steps of {span}; got an array of shape {got.shape}")
            if got.shape[1:] != wanted.shape[1:] or got.dtype != wanted.dtype:
                raise ValueError(
                    f"{name} must return arrays of one shape and dtype; got {got.dtype}{list(got.shape)} after "
                    f"{wanted.dtype}{list(wanted.shape)}"
                )
        self._example = example, example_tree
        return batch.mask, leaves
