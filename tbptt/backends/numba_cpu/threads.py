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

System functions (atomic addition, memory, yielding, calls by address) are part of the compiled
operation, or linked by name when it is loaded. Addresses of this process would be invalid in the
code that numba keeps on disk. `python -m benchmarks.peers` measures the effect of the constants.
"""

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from tbptt.backends.numba_cpu.xla_ffi import (
    attribute,
    buffers,
    compiled,
    cube,
    inlined,
    matrix,
    words,
)

# Batch rows from which weights are packed for `gemm`; for one row packing costs more than it saves.
PACKED_ROWS = 2
# Each thread reads all weights and takes about 0.02 ms to start, so it needs enough batch rows and
# enough multiplications.
ROWS_PER_THREAD, PRODUCTS_PER_THREAD = 4, 8_000_000
OWNERS = 0  # the word of shared memory that counts its owners
NEXT, DONE, SHARDS, FRAME, SIZE = range(OWNERS + 1, OWNERS + 6)
API, CONTEXT = 2, 3  # words of a call frame
# Words of XLA's table of functions (XLA_FFI_Api); a test compares them with its header.
ERROR_DESTROY, SCHEDULE = 8, 17
WORD = numba.types.intp
BYTES = 8  # of a word
WINDOWS = sys.platform == "win32"


def thread_count(rows: int, products: int) -> int:
    """Return the threads of an operation, from its batch rows and the multiplications per row."""
    return max(
        1, min(cores_per_device(), rows // ROWS_PER_THREAD, rows * products // PRODUCTS_PER_THREAD)
    )


def cores_per_device() -> int:
    """Return the CPU cores per device of this process.

    It is 1 after `tbptt.distributed.split_cpu()`.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux; containers may restrict it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // jax.local_device_count())


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


@compiled
def release(address):  # type: ignore[no-untyped-def]
    """Release one ownership of shared memory; the last owner frees it."""
    if add(address + OWNERS * BYTES, -1) == 1:
        free(address)


@compiled
def schedule(frame_address, helper, address):  # type: ignore[no-untyped-def]
    """Schedule the call `helper(address)` on a thread of XLA; the helper becomes an owner.

    XLA may call it at once on this thread. Return whether it is scheduled, which is False if XLA
    has no thread pool.
    """
    frame = words(frame_address, CONTEXT + 1)
    size = words(frame[API], 1)[0] // BYTES  # the first word is the size; older tables are shorter
    if size <= SCHEDULE:
        return False
    table = words(frame[API], size)
    add(address + OWNERS * BYTES, 1)
    block = malloc(5 * BYTES)
    arguments = words(block, 5)
    arguments[0], arguments[1], arguments[2], arguments[3] = 5 * BYTES, 0, frame[CONTEXT], helper
    arguments[4] = address
    error = call(table[SCHEDULE], block)
    if error != 0:
        add(address + OWNERS * BYTES, -1)
        arguments[0], arguments[2] = 3 * BYTES, error
        call(table[ERROR_DESTROY], block)
    free(block)
    return error == 0


def with_unique_name(run: Any, function: Any) -> Any:
    """Set a `__qualname__` that no other function has; return the unwrapped function."""
    function = inspect.unwrap(function)
    # Numba links the code that it keeps on disk by this name.
    function.__qualname__ = f"{run.__module__}.{run.__name__}.{function.__name__}"
    return function


def _system_function(name: str, takes: int, bits: int = 8 * BYTES) -> Any:
    """Make an intrinsic that calls a C function of words; its result has `bits` bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        function_type = ir.FunctionType(ir.IntType(bits), [word] * takes)
        made = builder.call(
            cgutils.get_or_insert_function(builder.module, function_type, name), args
        )
        return made if bits == word.width else builder.zext(made, word)

    if takes == 0:
        return intrinsic(lambda typing_context: (WORD(), build))
    return intrinsic(lambda typing_context, word: (WORD(WORD), build))


malloc, free = _system_function("malloc", 1), _system_function("free", 1)
yield_thread = _system_function("SwitchToThread" if WINDOWS else "sched_yield", 0, 32)


def _add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add atomically to a word; return its former value."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        return builder.atomic_rmw(
            "add", builder.inttoptr(args[0], word.as_pointer()), args[1], "seq_cst"
        )

    return WORD(WORD, WORD), build


def _call(typing_context: Any, function: Any, argument: Any) -> Any:
    """Call a C function `word(word)` by its address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        pointer = builder.inttoptr(args[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(pointer, [args[1]])

    return WORD(WORD, WORD), build


add: Any = intrinsic(_add)
call: Any = intrinsic(_call)


def address_in_c(function: Callable[[Any, Any], None]) -> Any:
    """Make an intrinsic that returns the address of a C function `word(word)`.

    Args:
      function: `(address, dtype)`, which numba can compile, with a unique name. The argument of the
        intrinsic is `dtype`, numba's type of the numbers.
    """

    def address(typing_context: Any, dtype: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            inner, word = numba.types.none(WORD, dtype), context.get_value_type(WORD)
            made = context.compile_subroutine(builder, function, inner)
            outer = ir.FunctionType(word, [word])
            in_c = ir.Function(builder.module, outer, builder.module.get_unique_name("in_c"))
            in_c.linkage = "internal"
            within = ir.IRBuilder(in_c.append_basic_block())
            nothing = context.get_constant_null(dtype)  # a type has no value
            context.call_internal_no_propagate(within, made.fndesc, inner, [in_c.args[0], nothing])
            within.ret(word(0))
            return builder.ptrtoint(in_c, word)

        return WORD(dtype), build

    return intrinsic(address)
