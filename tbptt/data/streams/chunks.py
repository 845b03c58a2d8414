"""One long recording as a stream: lanes side by side, chunks in order, and a guard that the order is kept."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from tbptt import windows
from tbptt.types import Batch

Tree = TypeVar("Tree")


class Chunk(NamedTuple):
    """A piece of a stream.

    batch: `[length, *batch, ...]`
    start: the index of its first step in the lanes
    """

    batch: Batch
    start: int


class DiscontinuousFeed(ValueError):
    """A chunk does not follow the one before it, so the carry that is handed on belongs to other steps."""


def split_into_streams(tree: Tree, n: int) -> Tree:
    """Lays one recording out as n lanes that run side by side: every leaf `[T, ...]` becomes `[T // n, n, ...]`.

        for i in range(n):
            for t in range(T // n):
                lane[t, i] = leaf[i * (T // n) + t]

    Args:
        tree: a pytree of arrays `[T, ...]`, such as a Batch; numpy leaves become views, so a memory map stays on disk.
        n: static, the number of lanes, which becomes the batch axis; T must be a multiple of it.

    Returns:
        The same pytree, time-major, with a new axis of lanes after time. Each lane starts where another one ends, so
        start them all from the initial carry.

    Raises:
        TypeError: n is not an int.
        ValueError: n < 1, T is no multiple of n (a tail is never dropped silently), or leaves differ in T.
    """
    T, n = windows.length(tree), windows.check_window("n", n)
    if T < n or T % n:
        trim = f"Trim to T={T // n * n} explicitly" if T >= n else f"Take at most n={T}"
        raise ValueError(f"T must be a positive multiple of the n lanes; got T={T}, n={n}. {trim}, or choose another n")

    def lay_out(leaf: Any) -> Any:
        return leaf.reshape(n, T // n, *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(lay_out, tree)


def chunks(batch: Batch, length: int) -> Iterator[Chunk]:
    """Cuts a stream into chunks of `length` steps, in order.

        for start in range(0, T, length):
            yield Chunk(batch[start : start + length], start)

    Args:
        batch: `[T, *batch, ...]`; T must be a multiple of length.
        length: static, steps a chunk.

    Raises:
        TypeError: length is not an int.
        ValueError: length < 1, or T is no multiple of it; both when called, not at the first chunk.
    """
    count = windows.count(windows.length(batch), windows.check_window("length", length), name="length")

    def cut(start: int) -> Batch:
        return jax.tree.map(lambda leaf: leaf[start : start + length], batch)

    return (Chunk(cut(j * length), j * length) for j in range(count))


def continuous(chunks: Iterable[Chunk], start: int = 0) -> Iterator[Batch]:
    """Passes on the batches of chunks that follow each other, and refuses the first one that does not.

        expected = start
        for chunk in chunks:
            if chunk.start != expected and not all(chunk.batch.resets[0]): raise DiscontinuousFeed
            yield chunk.batch
            expected = chunk.start + len(chunk)

    Training through chunks hands a carry from each to the next, and that carry means something only if the next chunk
    goes on where the last one stopped, lane by lane. Examples of stateful networks are known to shuffle their batches,
    or to start an epoch over, and to train on carries of other steps; nothing fails, the numbers are only worse. Here
    it fails. A chunk may begin anywhere if every lane's first step (the first that the mask lets exist) resets, because
    then no carry enters it.

    Args:
        chunks: the stream, lazily read.
        start: the step at which the first chunk must begin, as after a resumption from a checkpoint.

    Yields:
        The batches, untouched.

    Raises:
        DiscontinuousFeed: a chunk is missing, repeated or shuffled, or the lanes are not as many as before.
        TypeError: an item is not a Chunk.
    """
    expected, batch_shape = start, None
    for item in chunks:
        if not isinstance(item, Chunk):
            raise TypeError(f"continuous wants Chunk(batch, start), as chunks() makes; got {type(item).__name__}")
        shape = windows.step_shape(item.batch)[1:]
        if batch_shape is not None and shape != batch_shape:
            raise DiscontinuousFeed(
                f"expected lanes of shape {batch_shape} at step {expected}; got {shape}. A carry belongs to its own "
                "lanes: keep the same lanes throughout, or begin another stream, from the initial carry"
            )
        if item.start != expected and not _resets_all(item.batch):
            raise DiscontinuousFeed(
                f"expected the chunk that begins at step {expected}; got the one at step {item.start}. A carry belongs "
                "to the steps before it: keep the chunks in order, each one once, or set Batch.resets to True on every "
                "lane of the first step after the seam"
            )
        yield item.batch
        expected, batch_shape = item.start + windows.length(item.batch), shape


def _resets_all(batch: Batch) -> bool:
    """Tells whether no carry enters the batch: in every lane, the first step that the mask lets exist is a reset."""
    if batch.resets is None:
        return False
    resets = np.asarray(batch.resets)
    exists = np.ones(resets.shape, bool) if batch.mask is None else np.asarray(batch.mask)
    first = np.argmax(exists, axis=0, keepdims=True)
    return bool(np.all(np.take_along_axis(resets & exists, first, axis=0)))
