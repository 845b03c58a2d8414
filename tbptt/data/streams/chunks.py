"""Split one long recording into streams and chunks, and check that chunks are continuous."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
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
    T, n = windows.length(tree), windows.check_window("n", n)
    if T < n or T % n:
        trim = f"Trim to T={T // n * n} explicitly" if T >= n else f"Take at most n={T}"
        raise ValueError(
            f"T must be a positive multiple of the n streams; got T={T}, n={n}. {trim}, or choose "
            "another n"
        )

    def lay_out(leaf: Any) -> Any:
        return leaf.reshape(n, T // n, *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(lay_out, tree)


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
    count = windows.count(
        windows.length(batch), windows.check_window("length", length), name="length"
    )

    def cut(start: int) -> Batch:
        return jax.tree.map(lambda leaf: leaf[start : start + length], batch)

    return (Chunk(cut(j * length), j * length) for j in range(count))


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


def _resets_all(batch: Batch) -> bool:
    """Return whether every stream resets at its first existing step, so that no carry enters."""
    if batch.resets is None:
        return False
    resets = np.asarray(batch.resets)
    exists = np.ones(resets.shape, bool) if batch.mask is None else np.asarray(batch.mask)
    first = np.argmax(exists, axis=0, keepdims=True)
    return bool(np.all(np.take_along_axis(resets & exists, first, axis=0)))
