"""Scheduling of functions on the threads of XLA, and reference-counted shared memory."""

import inspect
from typing import Any

from tbptt.backends.numba_cpu.system import BYTES, add, call, free, malloc
from tbptt.backends.numba_cpu.xla_ffi import compiled, words

OWNERS = 0  # the word of shared memory that counts its owners
API, CONTEXT = 2, 3  # words of a call frame
# Words of XLA's table of functions (XLA_FFI_Api); a test compares them with its header.
ERROR_DESTROY, SCHEDULE = 8, 17


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
