"""Chunks read ahead by a background thread, while the device works on the ones before."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax

from tbptt import windows
from tbptt.data.streams.chunks import Chunk
from tbptt.types import Batch


@runtime_checkable
class Stream(Protocol):
    """What can be read ahead: chunks by number."""

    def __len__(self) -> int: ...

    def chunk(self, i: int, /) -> Chunk: ...


def read_ahead(
    stream: Stream,
    start: int = 0,
    stop: int | None = None,
    depth: int = 2,
    put: Callable[[Batch], Any] = jax.device_put,
) -> Iterator[tuple[int, Chunk]]:
    """Yields the chunks of a stream in order, the next ones being read meanwhile.

        for i in range(start, stop):
            chunk = stream.chunk(i)
            yield i, Chunk(put(chunk.batch), chunk.start)

    After chunk i was used, the position to save is i + 1: `read_ahead(stream, i + 1)` goes on from there, and nothing is
    skipped or repeated, however far the thread had read ahead. What the thread raises is raised here, in its turn, after
    the chunks before it. The thread ends when the iterator is exhausted, closed (`.close()`), or let go of.

    Args:
        stream: a `RecordingStream`, or anything with `chunk(i)` and a length.
        start: the first chunk.
        stop: the chunk before which to end; None: the end of the pass that `start` is in.
        depth: chunks that wait at most; one more is being read.
        put: what is done with a batch in the thread: by default its copy to the device is started.

    Raises:
        TypeError, ValueError: start, stop or depth is not a count; when called. Whatever the stream raises; when read.
    """
    windows.check_window("depth", depth)
    passes = len(stream)
    stop = (start // passes + 1) * passes if stop is None else stop
    if start < 0 or stop < start:
        raise ValueError(f"start and stop must be numbers of chunks, 0 <= start <= stop; got start={start}, stop={stop}")
    return _consume(stream, range(start, stop), depth, put)


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


def _consume(stream: Stream, numbers: range, depth: int, put: Callable[[Batch], Any]) -> Iterator[tuple[int, Chunk]]:
    waiting: queue.Queue[tuple[int, Chunk] | _Failure] = queue.Queue(depth)
    closed = threading.Event()

    def work() -> None:
        try:
            for i in numbers:
                if closed.is_set():
                    return
                chunk = stream.chunk(i)
                waiting.put((i, Chunk(put(chunk.batch), chunk.start)))
        except BaseException as error:  # whatever it is, the consumer must hear of it: else it would wait for ever
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
        # From here on the thread puts one more thing at most, and there is room for it: then it sees that it is over.
        while not waiting.empty():
            waiting.get_nowait()
        thread.join()
