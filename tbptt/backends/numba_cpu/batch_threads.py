"""Operations whose batch rows are computed in shards, on the threads of XLA's pool.

    shared = (owners=2, next=0, done=0, shards, frame)
    for _ in range(shards - 1): owners++; schedule(run_shards)
    run_shards()
    while done < shards: yield_thread()
    release()

    run_shards: while (i := next++) < shards: run(frame, i, shards); done++
                release()
    release:    if owners-- == 1: free(shared)

Every thread takes the next shard, the calling thread included. The caller therefore waits only for
shards that another thread already computes: a busy pool, or none, costs time but cannot block. A
late thread finds no shard left and reads nothing but `shared`, which the last owner frees.
"""

from collections.abc import Callable
from typing import Any

from tbptt.backends.numba_cpu.system import BYTES, add, address_in_c, call, malloc, yield_thread
from tbptt.backends.numba_cpu.thread_helpers import OWNERS, release, schedule, with_unique_name
from tbptt.backends.numba_cpu.xla_ffi import (
    attribute,
    buffers,
    compiled,
    cube,
    inlined,
    matrix,
    words,
)

NEXT, DONE, SHARDS, FRAME, SIZE = range(OWNERS + 1, OWNERS + 6)


@compiled
def shard_rows(shard, h):  # type: ignore[no-untyped-def]
    """Return the range `(first, end)` of batch rows of `shard = (index, count)`. h: `[N, H]`."""
    (index, count), N = shard, h.shape[0]
    return index * N // count, (index + 1) * N // count


def sharded(run: Callable[..., None], weights_index: int) -> Any:
    """Make a compiled function `(frame_address, dtype)` that runs an operation in shards.

    The number of shards is the attribute of the operation.

    Args:
      run: a `compiled` function `(w, ins, outs, dtype, shard)` of packed weights, `buffers`,
        numba's type of the numbers, and `shard = (index, count)`.
      weights_index: the position of the weights in `ins`.
    """

    def run_shards(address, dtype):  # type: ignore[no-untyped-def]
        shared = words(address, SIZE)
        count = shared[SHARDS]
        index = add(address + NEXT * BYTES, 1)
        while index < count:
            # Read the frame only while a shard is left: afterwards it may have been freed.
            ins, outs = buffers(shared[FRAME])
            run(cube(ins[weights_index], dtype), ins, outs, dtype, (index, count))
            add(address + DONE * BYTES, 1)
            index = add(address + NEXT * BYTES, 1)
        release(address)

    def run_all_shards(frame_address, dtype):  # type: ignore[no-untyped-def]
        address, helper, count = malloc(SIZE * BYTES), helper_of(dtype), attribute(frame_address)
        shared = words(address, SIZE)
        shared[OWNERS], shared[NEXT], shared[DONE] = 2, 0, 0
        shared[SHARDS], shared[FRAME] = count, frame_address
        for _ in range(count - 1):
            schedule(frame_address, helper, address)
        call(helper, address)  # by address, so that it is not compiled a second time
        while add(address + DONE * BYTES, 0) < count:
            yield_thread()
        release(address)

    helper_of = address_in_c(with_unique_name(run, run_shards))
    return inlined(with_unique_name(run, run_all_shards))


def unsharded(run: Callable[..., None], weights_index: int) -> Any:
    """Make a compiled function `(frame_address, dtype)` that runs on the calling thread.

    The arguments are those of `sharded`, except that `run` reads plain weights.
    """

    def run_single_shard(frame_address, dtype):  # type: ignore[no-untyped-def]
        ins, outs = buffers(frame_address)
        run(matrix(ins[weights_index], dtype), ins, outs, dtype, (0, 1))

    return inlined(with_unique_name(run, run_single_shard))
