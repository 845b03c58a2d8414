"""Streams of equal length and their chunks in order.

Split one recording into streams, or pack sequences into them; split streams into chunks, check that
chunks are continuous, and read them ahead.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from tbptt import windows
from tbptt.types import Batch

Tree = TypeVar("Tree")


class Chunk(NamedTuple):
    """A chunk of a stream.

    batch: `[length, *batch, ...]`
    start: index of its first step in the streams
    """

    batch: Batch
    start: int


class DiscontinuousFeed(ValueError):
    """A chunk does not continue the previous one, so the carry belongs to other steps."""


def split_into_streams(tree: Tree, n: int) -> Tree:
    """Split one recording into n streams of equal length, one per batch row.

    Every leaf `[T, ...]` becomes `[T // n, n, ...]`:

        for i in range(n):
            for t in range(T // n):
                stream[t, i] = leaf[i * (T // n) + t]

    Args:
        tree: a pytree of arrays `[T, ...]`, such as a Batch. NumPy leaves become views, so a
            memory map stays on disk.
        n: static, the number of streams, which becomes the batch axis; must divide T.

    Returns:
        The same pytree, time-major, with a batch axis after time. Each stream starts where
        another one ends, so start all of them from the initial carry.

    Raises:
        TypeError: n is not an int.
        ValueError: n < 1, T is not a multiple of n (a tail is never dropped silently), or
            leaves differ in T.
    """
    T, n = windows.length(tree), windows.check_positive_int("n", n)
    if T < n or T % n:
        trim = f"Trim to T={T // n * n} explicitly" if T >= n else f"Take at most n={T}"
        raise ValueError(
            f"T must be a positive multiple of the n streams; got T={T}, n={n}. {trim}, or choose "
            "another n"
        )

    def lay_out(leaf: Any) -> Any:
        return leaf.reshape(n, T // n, *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(lay_out, tree)


def pack(inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray], n: int, T: int) -> Batch:
    """Pack sequences into n streams, each at the end of the shortest stream so far.

        for i in range(len(inputs)):
            stream = the one with the smallest length
            inputs, targets -> that stream's steps length .. length + len(inputs[i]) - 1
            resets = True at the first of them, mask = True at all of them
        the rest of every stream: zeros, mask = False

    A carry therefore stays within one sequence, however the streams are split into windows. The
    longest stream has at most (all steps) / n + (longest sequence) steps, so a T of that length
    suffices for any order.

    Args:
        inputs, targets: one array `[T_i, ...]` per sequence.
        n: static, number of streams, the batch size.
        T: static, length of every stream.

    Returns:
        A Batch `[T, n, ...]` with resets and mask.

    Raises:
        TypeError: n or T is not an int.
        ValueError: there is no sequence, the lengths of inputs and targets differ, a sequence
            is empty, or a stream is longer than T.
    """
    n, T = windows.check_positive_int("n", n), windows.check_positive_int("T", T)
    lengths = [len(x) for x in inputs]
    target_lengths = [len(y) if np.ndim(y) else None for y in targets]
    if not lengths or lengths != target_lengths or 0 in lengths:
        raise ValueError(
            "inputs and targets must be sequences of equal lengths, at least one and none empty; "
            f"got {len(lengths)} of lengths {lengths[:5]} and {len(target_lengths)} of lengths "
            f"{target_lengths[:5]}. With one label per sequence use tbptt.data.pad(labels=...)"
        )
    filled, places = np.zeros(n, int), []
    for length in lengths:
        stream = int(np.argmin(filled))
        places.append((stream, int(filled[stream])))
        filled[stream] += length
    if filled.max() > T:
        bound = sum(lengths) // n + max(lengths)
        raise ValueError(
            f"the longest of {n} streams has {filled.max()} steps, more than T={T}; T={bound} is "
            "enough for any order"
        )
    xs = np.zeros((T, n, *inputs[0].shape[1:]), inputs[0].dtype)
    ys = np.zeros((T, n, *targets[0].shape[1:]), targets[0].dtype)
    resets, mask = np.zeros((T, n), bool), np.zeros((T, n), bool)
    for x, y, (stream, start) in zip(inputs, targets, places, strict=True):
        steps = slice(start, start + len(x))
        xs[steps, stream], ys[steps, stream], mask[steps, stream] = x, y, True
        resets[start, stream] = True
    return Batch(jnp.asarray(xs), jnp.asarray(ys), None, jnp.asarray(resets), jnp.asarray(mask))


def chunks(batch: Batch, length: int) -> Iterator[Chunk]:
    """Split a stream into chunks of `length` steps, in order.

        for start in range(0, T, length):
            yield Chunk(batch[start : start + length], start)

    Args:
        batch: `[T, *batch, ...]`; T must be a multiple of length.
        length: static, steps per chunk.

    Raises:
        TypeError: length is not an int.
        ValueError: length < 1, or T is not a multiple of it. Raised by the call, not by the
            first chunk.
    """
    count = windows.count_windows(
        windows.length(batch), windows.check_positive_int("length", length), name="length"
    )

    def chunk_at(start: int) -> Batch:
        return jax.tree.map(lambda leaf: leaf[start : start + length], batch)

    return (Chunk(chunk_at(j * length), j * length) for j in range(count))


def continuous(chunks: Iterable[Chunk], start: int = 0) -> Iterator[Batch]:
    """Yield the batches of consecutive chunks, and raise at the first gap.

        expected = start
        for chunk in chunks:
            if chunk.start != expected and not all(chunk.batch.resets[0]): raise DiscontinuousFeed
            yield chunk.batch
            expected = chunk.start + len(chunk)

    Training on chunks passes a carry from each chunk to the next. The carry is valid only if
    every stream of the next chunk continues where the previous chunk stopped. Shuffled batches,
    or a second epoch without a reset, would silently train on carries of other steps. A chunk
    may begin anywhere if every stream resets at its first step (the first that the mask
    keeps), because then no carry enters it.

    Args:
        chunks: the stream, read lazily.
        start: the step at which the first chunk must begin, for example after a resumption
            from a checkpoint.

    Yields:
        The batches, unchanged.

    Raises:
        DiscontinuousFeed: a chunk is missing, repeated or shuffled, or the number of streams
            changed.
        TypeError: an item is not a Chunk.
    """
    expected, batch_shape = start, None
    for item in chunks:
        if not isinstance(item, Chunk):
            raise TypeError(
                "continuous takes Chunk(batch, start), as made by chunks(); got "
                f"{type(item).__name__}"
            )
        shape = windows.step_shape(item.batch)[1:]
        if batch_shape is not None and shape != batch_shape:
            raise DiscontinuousFeed(
                f"expected streams of shape {batch_shape} at step {expected}; got {shape}. The "
                "number of streams must not change; start a new feed from the initial carry"
            )
        if item.start != expected and not _resets_all(item.batch):
            raise DiscontinuousFeed(
                f"expected the chunk that begins at step {expected}; got the one at step "
                f"{item.start}. The carry continues from step {expected}: pass each chunk once and "
                "in order, or set Batch.resets to True for every stream at the first step after "
                "the gap"
            )
        yield item.batch
        expected, batch_shape = item.start + windows.length(item.batch), shape


@runtime_checkable
class Stream(Protocol):
    """A stream that can be read ahead: chunks by number."""

    def __len__(self) -> int: ...

    def chunk(self, i: int, /) -> Chunk: ...


def read_ahead(
    stream: Stream,
    start: int = 0,
    stop: int | None = None,
    depth: int = 2,
    put: Callable[[Batch], Any] = jax.device_put,
) -> Iterator[tuple[int, Chunk]]:
    """Yield the chunks of a stream in order, reading the next ones in a background thread.

        for i in range(start, stop):
            chunk = stream.chunk(i)
            yield i, Chunk(put(chunk.batch), chunk.start)

    After chunk i was used, the position to save is i + 1: `read_ahead(stream, i + 1)` continues
    there, and no chunk is skipped or repeated, however far the thread had read. An exception of
    the thread is raised here in order, after the chunks before it. The thread ends when the
    iterator is exhausted, closed (`.close()`) or garbage-collected.

    Args:
        stream: a `RecordingStream`, or any object with `chunk(i)` and a length.
        start: the first chunk.
        stop: end before this chunk; None: at the end of the pass that contains `start`.
        depth: maximum number of chunks in the queue; one more is being read.
        put: function applied to a batch in the thread; by default it starts the copy to the
            device.

    Raises:
        TypeError, ValueError: start, stop or depth is invalid; raised by the call. Exceptions
            of the stream are raised when the chunk is read.
    """
    windows.check_positive_int("depth", depth)
    passes = len(stream)
    stop = (start // passes + 1) * passes if stop is None else stop
    if start < 0 or stop < start:
        raise ValueError(
            "start and stop must be chunk numbers with 0 <= start <= stop; got "
            f"start={start}, stop={stop}"
        )
    return _consume(stream, range(start, stop), depth, put)


def _resets_all(batch: Batch) -> bool:
    """Return whether every stream resets at its first existing step, so that no carry enters."""
    if batch.resets is None:
        return False
    resets = np.asarray(batch.resets)
    exists = np.ones(resets.shape, bool) if batch.mask is None else np.asarray(batch.mask)
    first = np.argmax(exists, axis=0, keepdims=True)
    return bool(np.all(np.take_along_axis(resets & exists, first, axis=0)))


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


def _consume(
    stream: Stream, numbers: range, depth: int, put: Callable[[Batch], Any]
) -> Iterator[tuple[int, Chunk]]:
    waiting: queue.Queue[tuple[int, Chunk] | _Failure] = queue.Queue(depth)
    closed = threading.Event()

    def work() -> None:
        try:
            for i in numbers:
                if closed.is_set():
                    return
                chunk = stream.chunk(i)
                waiting.put((i, Chunk(put(chunk.batch), chunk.start)))
        except BaseException as error:  # without it the consumer would wait forever
            waiting.put(_Failure(error))

    thread = threading.Thread(target=work, name="tbptt-read-ahead", daemon=True)
    thread.start()
    try:
        for _ in numbers:
            item = waiting.get()
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        closed.set()
        # The thread puts at most one more item; with the queue empty that does not block, and
        # then the thread sees `closed`.
        while not waiting.empty():
            waiting.get_nowait()
        thread.join()
