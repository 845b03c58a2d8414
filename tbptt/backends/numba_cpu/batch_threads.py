"""One operation in several parts at once, by lanes, on the threads that XLA has for a program.

    shared = (owners=2, next=0, done=0, parts, frame)
    for _ in range(parts - 1): owners++; schedule(help)
    help(); while done < parts: wait; drop()

    help: while (part := next++) < parts: run(frame, part, parts); done++
          drop()
    drop: if owners-- == 1: free(shared)

Whoever is free takes the next part, the caller too, so it waits only for parts that are being computed: threads that are
busy, or that are none, cost time and nothing else. A helper that comes late finds no part left, and reads nothing but
`shared`, which the last owner frees.
"""

from collections.abc import Callable
from typing import Any

from tbptt.backends.numba_cpu.system import BYTES, add, address_in_c, call, give_way, malloc
from tbptt.backends.numba_cpu.thread_helpers import OWNERS, drop, named_for, schedule
from tbptt.backends.numba_cpu.xla_ffi import attribute, buffers, compiled, cube, inlined, matrix, words

NEXT, DONE, PARTS, FRAME, SIZE = range(OWNERS + 1, OWNERS + 6)


@compiled
def rows_of(place, h):  # type: ignore[no-untyped-def]
    """Return the range `(first, end)` of batch rows of part `place = (part, parts)`. h: `[N, H]`."""
    (part, parts), N = place, h.shape[0]
    return part * N // parts, (part + 1) * N // parts


def in_parts(run: Callable[..., None], which: int) -> Any:
    """Makes a compiled function `(frame_address, kind)` that runs an operation in its `parts`, an attribute of it.

    run: a function `compiled`, `(w, ins, outs, kind, place)`: packed weights, `buffers`, numba's type of the numbers, and
    `(part, parts)`.
    which: the place of the weights among `ins`.
    """

    def help_out(address, kind):  # type: ignore[no-untyped-def]
        shared = words(address, SIZE)
        parts = shared[PARTS]
        part = add(address + NEXT * BYTES, 1)
        while part < parts:
            ins, outs = buffers(shared[FRAME])  # only here: when no part is left, the frame may be gone
            run(cube(ins[which], kind), ins, outs, kind, (part, parts))
            add(address + DONE * BYTES, 1)
            part = add(address + NEXT * BYTES, 1)
        drop(address)

    def all_parts(frame_address, kind):  # type: ignore[no-untyped-def]
        address, helper, parts = malloc(SIZE * BYTES), helper_of(kind), attribute(frame_address)
        shared = words(address, SIZE)
        shared[OWNERS], shared[NEXT], shared[DONE], shared[PARTS], shared[FRAME] = 2, 0, 0, parts, frame_address
        for _ in range(parts - 1):
            schedule(frame_address, helper, address)
        call(helper, address)  # by its address too: compiled into this function as well, it would take twice as long
        while add(address + DONE * BYTES, 0) < parts:
            give_way()
        drop(address)

    helper_of = address_in_c(named_for(run, help_out))
    return inlined(named_for(run, all_parts))


def in_one_part(run: Callable[..., None], which: int) -> Any:
    """Make a compiled function `(frame_address, kind)` that runs an operation with plain weights on the calling thread."""

    def one_part(frame_address, kind):  # type: ignore[no-untyped-def]
        ins, outs = buffers(frame_address)
        run(matrix(ins[which], kind), ins, outs, kind, (0, 1))

    return inlined(named_for(run, one_part))
