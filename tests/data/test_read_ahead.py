"""Reading ahead yields the same chunks; errors arrive in order, and threads end."""

import threading
import time

import jax
import numpy as np
import pytest

from tbptt.data import BadSample, Chunk, read_ahead
from tbptt.types import Batch


class Numbers:
    """Stream whose chunk i holds i; chunks in `faults` raise. Records reads and their threads."""

    def __init__(self, n=10, faults=()):
        self.n, self.faults, self.read = n, faults, []
        self.threads = set()

    def __len__(self):
        return self.n

    def chunk(self, i):
        self.read.append(i)
        self.threads.add(threading.current_thread())
        if i in self.faults:
            raise BadSample(f"chunk {i} is bad")
        return Chunk(Batch(np.full((2, 1, 1), float(i)), np.zeros((2, 1))), 2 * i)


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("timeout")


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "tbptt-read-ahead"]


RANGES = [
    (0, None, range(10)),
    (7, None, range(7, 10)),
    (3, 5, [3, 4]),
    (8, 13, range(8, 13)),
    (4, 4, []),
]


@pytest.mark.parametrize(("start", "stop", "wanted"), [*RANGES, (10, None, range(10, 20))])
def test_chunks_are_yielded_in_order_and_on_the_device(start, stop, wanted):
    stream = Numbers()
    got = list(read_ahead(stream, start, stop))
    assert [i for i, _ in got] == list(wanted) == stream.read
    for i, chunk in got:
        assert isinstance(chunk.batch.inputs, jax.Array) and chunk.start == 2 * i
        np.testing.assert_array_equal(chunk.batch.inputs, i)
    assert threading.current_thread() not in stream.threads and not alive()


def test_it_reads_at_most_depth_chunks_ahead():
    stream = Numbers(100)
    feed = read_ahead(stream, depth=3, put=lambda batch: batch)
    next(feed)
    wait_until(lambda: len(stream.read) == 5)  # one is used, three are queued, one waits
    time.sleep(0.05)
    assert stream.read == [0, 1, 2, 3, 4]
    next(feed)
    wait_until(lambda: len(stream.read) == 6)
    feed.close()
    assert not alive()


def test_put_is_called_in_the_thread():
    where = []
    list(read_ahead(Numbers(3), put=lambda batch: where.append(threading.current_thread())))
    assert len(where) == 3 and threading.current_thread() not in where


def test_an_error_is_raised_after_the_chunks_before_it():
    for depth in (1, 5):
        seen = []
        with pytest.raises(BadSample, match="chunk 4 is bad"):
            for i, _ in read_ahead(Numbers(10, faults=(4,)), depth=depth):
                seen.append(i)
        assert seen == [0, 1, 2, 3] and not alive()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("faults", [(), (3,)])
def test_stopping_early_ends_the_thread(depth, faults):
    for used in (1, 2, 3):
        stream = Numbers(50, faults)
        feed = read_ahead(stream, depth=depth)
        for _ in range(used):
            next(feed)
        feed.close()
        assert not alive() and len(stream.read) <= used + depth + 2
    feed = read_ahead(Numbers(50), depth=depth)
    next(feed)
    del feed  # garbage-collected, not closed
    assert not alive()


def test_resuming_repeats_and_skips_no_chunk():
    stream, seen = Numbers(10), []
    feed = read_ahead(stream, depth=4)
    for _ in range(4):
        seen.append(next(feed)[0])
    feed.close()
    seen += [i for i, _ in read_ahead(stream, seen[-1] + 1)]
    assert seen == list(range(10))


def test_arguments_are_validated_by_the_call():
    for options in ({"start": -1}, {"start": 3, "stop": 2}, {"depth": 0}):
        with pytest.raises(ValueError):
            read_ahead(Numbers(), **options)
