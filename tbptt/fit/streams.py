"""Make a stream of numbered chunks from any form of training data."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from tbptt.data.streams.chunks import Chunk, Stream
from tbptt.types import Batch
from tbptt.windows import check_positive_int, count_windows, length


def stream_of(batches: Any, chunk: int | None = None, independent: bool | None = None) -> Stream:
    """Return training data as a stream of numbered chunks, `len(stream)` of them per pass.

        for p in range(passes):
            for batch in batches:
                for start in range(0, T, chunk):
                    yield batch[start : start + chunk]

    Args:
      batches: a `Batch` `[T, *batch, ...]`; an iterable of them with a length, such as a list or a
        data loader, all of one T; or a stream (`tbptt.data.RecordingStream`).
      chunk: steps per update, must divide T; None: all T.
      independent: whether every batch of an iterable starts from the initial carry; otherwise it
        continues the batch before. Must be given for an iterable of several batches.

    Returns:
      A stream with the attribute `per_sequence`, the number of chunks after which the next chunk
      starts from the initial carry. If `batches` is a stream, it is returned unchanged.

    Raises:
      TypeError, ValueError: batches is none of these, `independent` or `chunk` is missing or does
        not fit.
    """
    if isinstance(batches, Stream):
        if chunk is not None or independent is not None:
            raise ValueError(
                "a stream has chunks of its own length and sets its resets itself; got chunk="
                f"{chunk}, independent={independent}. Omit both"
            )
        return batches
    if isinstance(batches, Batch):
        return BatchStream([batches], chunk, independent=False)
    if isinstance(batches, jax.Array | np.ndarray):
        raise TypeError(
            f"batches must hold Batches; got an array {np.shape(batches)}. Write "
            "tbptt.Batch(inputs=..., targets=...), arrays [T, *batch, ...]"
        )
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        raise TypeError(
            "batches must be a Batch, an iterable of Batches that can be read again in every pass "
            f"(a list, a data loader), or a stream; got {type(batches).__name__}. Make a list of "
            "the batches of a generator"
        )
    if not hasattr(batches, "__len__"):
        raise TypeError(
            f"batches must have a length, the number of batches in a pass; "
            f"{type(batches).__name__} has none. Define __len__, or make a list"
        )
    several: Any = batches
    if len(several) == 0:
        raise ValueError("batches must hold at least one Batch; got none")
    if isinstance(several, Sequence):
        _check_batch(several[0], 0)
    if independent is None and len(several) > 1:
        raise ValueError(
            "independent must be given for several batches: True if every batch holds whole "
            "sequences and starts from the initial carry, False if it continues the batch before"
        )
    return BatchStream(several, chunk, bool(independent))


def _check_batch(batch: Any, number: int) -> None:
    if not isinstance(batch, Batch):
        raise TypeError(
            f"batches must hold Batches; batch {number} is of type {type(batch).__name__}. Write "
            "Batch(inputs=..., targets=...)"
        )


class BatchStream:
    """Stream of batches, split into chunks of equal length.

    Args:
      batches: an iterable with a length.
      chunk, independent: as for `stream_of`.
    """

    def __init__(self, batches: Any, chunk: int | None, independent: bool) -> None:
        self._batches, self._iterator, self._next = batches, None, 0
        self._held: tuple[int, Any] = (-1, None)
        self.steps = length(self._batch(0))
        self._chunk = self.steps if chunk is None else check_positive_int("chunk", chunk)
        self._per_batch = count_windows(self.steps, self._chunk, name="chunk")
        self.per_sequence = self._per_batch if independent else len(self)

    def __len__(self) -> int:
        return self._per_batch * len(self._batches)

    def chunk(self, i: int, /) -> Chunk:
        batch, part = divmod(i, self._per_batch)
        start = part * self._chunk
        chunk = jax.tree.map(lambda leaf: leaf[start : start + self._chunk], self._batch(batch))
        return Chunk(chunk, (i % len(self)) * self._chunk)

    def _batch(self, number: int) -> Batch:
        """Return a batch, counted over all passes, with numpy leaves: their slices are views."""
        held, batch = self._held
        if number == held:
            return batch
        batch = self._read(number)
        _check_batch(batch, number % len(self._batches))
        batch = jax.tree.map(np.asarray, batch)
        steps = length(batch)
        if held >= 0 and steps != self.steps:
            raise ValueError(
                f"all batches must have the same number of steps; batch "
                f"{number % len(self._batches)} has T={steps}, the first one T={self.steps}. Pad "
                "the shorter ones, with mask False at the padding"
            )
        self._held = number, batch
        return batch

    def _read(self, number: int) -> Any:
        total = len(self._batches)
        if isinstance(self._batches, Sequence) or hasattr(self._batches, "__getitem__"):
            return self._batches[number % total]
        if self._iterator is None or number != self._next or number % total == 0:
            self._iterator = iter(self._batches)
            for _ in range(number % total):  # a run that is resumed within a pass
                next(self._iterator)
        self._next = number + 1
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"batches has the length {total}, but its iterator ended after {number % total}"
            ) from None
