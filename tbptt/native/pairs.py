"""One lane on two threads: half of the units each, which exchange once a step what they need of each other.

    caller                                                helper, once a thread has come to it
    for turn in range(T):                                 joined = True
        if mode == ALONE and joined:                      while first is None: wait
            first, mode = turn, PAIRED                    for turn in range(first, T):
        elif mode == PAIRED and it waited too long:           if turn == last: break
            last, mode = turn + 1, PARTING                    units = half 1
        elif mode == PARTING: mode = LEFT, when it has        ...
        units = half 0 if PAIRED or PARTING else all          turns[1] = turn + 1; while turns[0] <= turn: wait
        ...                                                   ...
        turns[0] = turn + 1; while turns[1] <= turn: wait
        ...
    if mode == ALONE: first = NEVER

The caller works alone until it has help, and again when it had to wait for it: then another thread has the helper's core,
and for a while no help is asked for. What is computed does not depend on any of this: alone, a caller sums over either half
of the units by itself and then adds, as two do.

XLA's list of what its threads are to do has an end, and what finds no place there runs at once, on the thread that asks. A
helper that finds itself on the caller's own thread leaves: it would wait for the caller, which waits for it.
"""

from collections.abc import Callable
from typing import Any

from tbptt.native.frame import attribute, buffers, compiled, inlined, matrix, words
from tbptt.native.helpers import OWNERS, drop, named_for, schedule
from tbptt.native.system import BYTES, add, address_in_c, call, give_way, load, malloc, store, this_thread, word_of_its_own

# Words that one thread writes while the other one waits for them lie on lines of the cache of their own: two, which some
# processors fetch together.
LINE = 16
HALVES, FRAME, MODE, WAITED, CALLER, EXPECTED = range(OWNERS + 1, OWNERS + 7)
JOINED, FIRST, LAST, TURNS, SIZE = LINE, 2 * LINE, 2 * LINE + 1, 3 * LINE, 5 * LINE
ALONE, PAIRED, PARTING, LEFT = range(4)
NOT_YET, NEVER = -1, 1 << 62  # turns
# Words are read so often before a thread lets others have its core: some 20 to 70 microseconds, where a turn takes 1 to 10.
PATIENCE = 40_000
LONGEST = 64  # operations that run alone after one that had to wait: 1, 3, 7 .. if it happens again, fewer if it does not
MOST = 16  # helpers that have been asked for and have not come, while XLA's threads are busy: no more are asked for


@compiled
def first_turn(place):  # type: ignore[no-untyped-def]
    """Returns from which turn on a thread works: a step each, in whichever direction."""
    who, _, address = place
    return load(address + FIRST * BYTES) if who == 1 and address != 0 else 0


@compiled
def units_of(place, turn, H):  # type: ignore[no-untyped-def]
    """Returns which of H >= 2 units are a thread's in a turn, from the first to before the last: in `parts` all; none
    where it is to leave."""
    who, _, address = place
    if address == 0:
        return 0, H
    if who == 1:
        return (H, H) if turn == load(address + LAST * BYTES) else (H // 2, H)
    return (0, H // 2) if _with_help(address, turn) else (0, H)


@compiled
def _with_help(address, turn):  # type: ignore[no-untyped-def]
    """Takes a helper in or lets it go, and says whether there is one in this turn."""
    shared = words(address, SIZE)
    if shared[MODE] == ALONE and load(address + JOINED * BYTES) == 1:
        store(address + FIRST * BYTES, turn)
        shared[MODE] = PAIRED
    elif shared[MODE] == PAIRED and shared[WAITED] == 1:
        store(address + LAST * BYTES, turn + 1)  # it may have begun with this turn
        shared[MODE] = PARTING
    elif shared[MODE] == PARTING:
        _wait(address + (TURNS + LINE) * BYTES, NEVER)
        shared[MODE] = LEFT
    return shared[MODE] == PAIRED or shared[MODE] == PARTING


@compiled
def meet(address, who, turn):  # type: ignore[no-untyped-def]
    """Says that all is written which the other thread needs of this one in this turn, and waits until it says so too."""
    store(address + (TURNS + who * LINE) * BYTES, turn + 1)
    if _wait(address + (TURNS + (1 - who) * LINE) * BYTES, turn + 1) and who == 0:
        words(address, SIZE)[WAITED] = 1


@compiled
def _wait(place, least):  # type: ignore[no-untyped-def]
    """Waits until a word is not less; says whether that took long."""
    waited = 0
    while load(place) < least:
        waited += 1
        if waited > PATIENCE:
            give_way()
    return waited > PATIENCE


@compiled
def _join(address):  # type: ignore[no-untyped-def]
    """Joins the caller and waits until it takes the helper in; says whether it did. Reads nothing but `shared`."""
    shared = words(address, SIZE)
    add(shared[EXPECTED], -1)
    if shared[CALLER] == this_thread():
        return False
    store(address + JOINED * BYTES, 1)
    _wait(address + FIRST * BYTES, 0)
    return load(address + FIRST * BYTES) != NEVER  # else too late: the frame may be gone


@compiled
def _ask(frame_address, worker, address, expected):  # type: ignore[no-untyped-def]
    """Asks for a helper. expected: the address of the number of those that have not come."""
    if load(expected) < MOST:
        add(expected, 1)
        if not schedule(frame_address, worker, address, 1):
            add(expected, -1)


def in_a_pair(run: Callable[..., None], which: int) -> Any:
    """Makes a compiled function `(frame_address, kind)` that runs an operation, by two threads if its attribute is 2.

    run: a function `compiled`, `(w, ins, outs, kind, place)`: weights as they are, `buffers`, numba's type of the numbers,
    and `(who, 1, address)`, of which the functions above make what each does.
    which: the place of the weights among `ins`.
    """

    def work(address_and_who, kind):  # type: ignore[no-untyped-def]
        who = address_and_who & 1
        address = address_and_who - who
        if who == 1 and not _join(address):
            drop(address)
            return
        ins, outs = buffers(words(address, SIZE)[FRAME])
        run(matrix(ins[which], kind), ins, outs, kind, (who, 1, address))
        store(address + (TURNS + who * LINE) * BYTES, NEVER)
        if who == 1:
            drop(address)

    def both(frame_address, kind):  # type: ignore[no-untyped-def]
        address, worker = malloc(SIZE * BYTES), worker_of(kind)
        alone_for, next_time, expected = word_of_its_own(), word_of_its_own(), word_of_its_own()
        shared = words(address, SIZE)
        shared[OWNERS], shared[HALVES], shared[FRAME] = 1, attribute(frame_address), frame_address
        shared[MODE], shared[WAITED], shared[JOINED], shared[FIRST], shared[LAST] = ALONE, 0, 0, NOT_YET, NEVER
        shared[TURNS], shared[TURNS + LINE], shared[CALLER], shared[EXPECTED] = 0, 0, this_thread(), expected
        if shared[HALVES] == 2:
            if load(alone_for) > 0:
                store(alone_for, load(alone_for) - 1)
            else:
                _ask(frame_address, worker, address, expected)
        call(worker, address)  # by its address, as in `parts`
        if shared[MODE] == ALONE:
            store(address + FIRST * BYTES, NEVER)
        elif shared[MODE] != LEFT:
            _wait(address + (TURNS + LINE) * BYTES, NEVER)
        if shared[WAITED] == 1:
            store(alone_for, min(load(next_time), LONGEST))
            store(next_time, min(2 * load(next_time) + 1, LONGEST))
        elif shared[MODE] == PAIRED:
            store(next_time, load(next_time) // 2)
        drop(address)

    worker_of = address_in_c(named_for(run, work))
    return inlined(named_for(run, both))
