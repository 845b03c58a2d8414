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

from tbptt.native.frame import attribute, buffers, compiled, cube, inlined, words
from tbptt.native.helpers import OWNERS, drop, named_for, schedule
from tbptt.native.system import BYTES, add, address_in_c, call, give_way, malloc

NEXT, DONE, PARTS, FRAME, SIZE = range(OWNERS + 1, OWNERS + 6)


@compiled
def lanes_of(place, h):  # type: ignore[no-untyped-def]
    """Returns which lanes are a part's, from the first to before the last: all of them in `pairs`. h: `[N, H]`."""
    (part, parts, address), N = place, h.shape[0]
    if address != 0:
        return 0, N
    return part * N // parts, (part + 1) * N // parts


def in_parts(run: Callable[..., None], which: int) -> Any:
    """Makes a compiled function `(frame_address, kind)` that runs an operation in its `parts`, an attribute of it.

    run: a function `compiled`, `(w, ins, outs, kind, place)`: packed weights, `buffers`, numba's type of the numbers, and
    `(part, parts, 0)`.
    which: the place of the weights among `ins`.
    """

    def help_out(address, kind):  # type: ignore[no-untyped-def]
        shared = words(address, SIZE)
        parts = shared[PARTS]
        part = add(address + NEXT * BYTES, 1)
        while part < parts:
            ins, outs = buffers(shared[FRAME])  # only here: when no part is left, the frame may be gone
            run(cube(ins[which], kind), ins, outs, kind, (part, parts, 0))
            add(address + DONE * BYTES, 1)
            part = add(address + NEXT * BYTES, 1)
        drop(address)

    def all_parts(frame_address, kind):  # type: ignore[no-untyped-def]
        address, helper, parts = malloc(SIZE * BYTES), helper_of(kind), attribute(frame_address)
        shared = words(address, SIZE)
        shared[OWNERS], shared[NEXT], shared[DONE], shared[PARTS], shared[FRAME] = 2, 0, 0, parts, frame_address
        for _ in range(parts - 1):
            schedule(frame_address, helper, address, 0)
        call(helper, address)  # by its address too: compiled into this function as well, it would take twice as long
        while add(address + DONE * BYTES, 0) < parts:
            give_way()
        drop(address)

    helper_of = address_in_c(named_for(run, help_out))
    return inlined(named_for(run, all_parts))
