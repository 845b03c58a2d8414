"""Calling for help: what a thread of XLA's is given to do, and the memory that helpers share, which the last one frees."""

import inspect
from typing import Any

from tbptt.backends.numba_cpu.system import BYTES, add, call, free, malloc
from tbptt.backends.numba_cpu.xla_ffi import compiled, words

OWNERS = 0  # the first word of shared memory: how many may still read it
API, CONTEXT = 2, 3  # words of a frame
ERROR_DESTROY, SCHEDULE = 8, 17  # words of the table of functions that XLA gives every operation; tests read its header


@compiled
def drop(address):  # type: ignore[no-untyped-def]
    """Gives up shared memory."""
    if add(address + OWNERS * BYTES, -1) == 1:
        free(address)


@compiled
def schedule(frame_address, helper, address):  # type: ignore[no-untyped-def]
    """Asks XLA to call a helper with `address` on one of its threads, or at once on this one if they have too much to
    do. The helper owns the memory at the address too.

    Returns whether it will be called: where XLA has no threads, no helper comes.
    """
    frame = words(frame_address, CONTEXT + 1)
    size = words(frame[API], 1)[0] // BYTES  # the table begins with its size; an older one may end before
    if size <= SCHEDULE:
        return False
    table = words(frame[API], size)
    add(address + OWNERS * BYTES, 1)
    place = malloc(5 * BYTES)
    arguments = words(place, 5)
    arguments[0], arguments[1], arguments[2], arguments[3] = 5 * BYTES, 0, frame[CONTEXT], helper
    arguments[4] = address
    error = call(table[SCHEDULE], place)
    if error != 0:
        add(address + OWNERS * BYTES, -1)
        arguments[0], arguments[2] = 3 * BYTES, error
        call(table[ERROR_DESTROY], place)
    free(place)
    return error == 0


def named_for(run: Any, function: Any) -> Any:
    """Names a function so that no other operation's is called like it: code that was kept on disk is linked by name."""
    function = inspect.unwrap(function)
    function.__qualname__ = f"{run.__module__}.{run.__name__}.{function.__name__}"
    return function
