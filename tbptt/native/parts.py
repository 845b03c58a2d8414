"""One operation in several parts at once, on the threads that XLA has for a program.

    shared = (next=0, done=0, owners=2, parts, frame)
    for _ in range(parts - 1): owners++; schedule(help)
    help(); while done < parts: wait; drop()

    help: while (part := next++) < parts: run(frame, part, parts); done++
          drop()
    drop: if owners-- == 1: free(shared)

Whoever is free takes the next part, the caller too, so it waits only for parts that are being computed: threads that are
busy, or that are none, cost time and nothing else. A helper that comes late finds no part left, and reads nothing but
`shared`, which the last owner frees.
"""

import inspect
from collections.abc import Callable
from typing import Any

from tbptt.native.frame import attribute, buffers, compiled, cube, words
from tbptt.native.system import add, address_in_c, call, free, give_way, malloc

NEXT, DONE, OWNERS, PARTS, FRAME, SIZE = range(6)
BYTES = 8  # of a word
API, CONTEXT = 2, 3  # words of a frame
ERROR_DESTROY, SCHEDULE = 8, 17  # words of the table of functions that XLA gives every operation; tests read its header


@compiled
def lanes_of(part, parts, work):  # type: ignore[no-untyped-def]
    """Returns which lanes are a part's, from the first to before the last. work: `[N, ...]`."""
    N = work.shape[0]
    return part * N // parts, (part + 1) * N // parts


def in_parts(run: Callable[..., None], which: int) -> Any:
    """Makes a compiled function `(frame_address, kind)` that runs an operation in its `parts`, an attribute of it.

    run: a function `compiled`, `(w, ins, outs, kind, part, parts)`: packed weights, `buffers`, numba's type of the numbers.
    which: the place of the weights among `ins`.
    """

    def help_out(address, kind):  # type: ignore[no-untyped-def]
        shared = words(address, SIZE)
        parts = shared[PARTS]
        part = add(address + NEXT * BYTES, 1)
        while part < parts:
            ins, outs = buffers(shared[FRAME])  # only here: when no part is left, the frame may be gone
            run(cube(ins[which], kind), ins, outs, kind, part, parts)
            add(address + DONE * BYTES, 1)
            part = add(address + NEXT * BYTES, 1)
        _drop(address)

    def all_parts(frame_address, kind):  # type: ignore[no-untyped-def]
        address, helper, parts = malloc(SIZE * BYTES), helper_of(kind), attribute(frame_address)
        shared = words(address, SIZE)
        shared[NEXT], shared[DONE], shared[OWNERS], shared[PARTS], shared[FRAME] = 0, 0, 2, parts, frame_address
        for _ in range(parts - 1):
            _schedule(frame_address, helper, address)
        call(helper, address)  # by its address too: compiled into this function as well, it would take twice as long
        while add(address + DONE * BYTES, 0) < parts:
            give_way()
        _drop(address)

    helper_of = address_in_c(_named_for(run, help_out))
    return compiled(_named_for(run, all_parts))


def _named_for(run: Any, function: Any) -> Any:
    """Names a function so that no other operation's is called like it: code that was kept on disk is linked by name."""
    function = inspect.unwrap(function)
    function.__qualname__ = f"{run.__module__}.{run.__name__}.{function.__name__}"
    return function


@compiled
def _drop(address):  # type: ignore[no-untyped-def]
    if add(address + OWNERS * BYTES, -1) == 1:
        free(address)


@compiled
def _schedule(frame_address, helper, address):  # type: ignore[no-untyped-def]
    """Asks XLA to call a helper with an address on one of its threads; where it has none, no helper comes."""
    frame = words(frame_address, CONTEXT + 1)
    size = words(frame[API], 1)[0] // BYTES  # the table begins with its size; an older one may end before
    if size <= SCHEDULE:
        return
    table = words(frame[API], size)
    add(address + OWNERS * BYTES, 1)
    place = malloc(5 * BYTES)
    arguments = words(place, 5)
    arguments[0], arguments[1], arguments[2], arguments[3], arguments[4] = 5 * BYTES, 0, frame[CONTEXT], helper, address
    error = call(table[SCHEDULE], place)
    if error != 0:
        add(address + OWNERS * BYTES, -1)
        arguments[0], arguments[2] = 3 * BYTES, error
        call(table[ERROR_DESTROY], place)
    free(place)
