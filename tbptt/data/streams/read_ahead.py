"""Read chunks ahead in a background thread while the device computes."""

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
    windows.check_window("depth", depth)
    passes = len(stream)
    stop = (start // passes + 1) * passes if stop is None else stop
    if start < 0 or stop < start:
        raise ValueError(
            "start and stop must be chunk numbers with 0 <= start <= stop; got "
            f"start={start}, stop={stop}"
        )
    return _consume(stream, range(start, stop), depth, put)


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
