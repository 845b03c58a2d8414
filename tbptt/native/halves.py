"""Products of a step whose units two threads share, see `pairs`.

A thread reads only its own units' rows of the weights, which stay in its own core's cache.
"""

from tbptt.native.arithmetic import own
from tbptt.native.frame import compiled, words
from tbptt.native.pairs import HALVES, SIZE, meet
from tbptt.native.rows import product_back_by_rows, product_by_rows


@compiled
def product_in_a_pair(sums, h, w, units, place, turn):  # type: ignore[no-untyped-def]
    """Computes h w_h; returns it where a thread may change it: only its own units' columns of every gate are whole.

    sums: `[4, G]` for one lane, for work: two turns, as the other thread may still read the last one's, of two halves; h:
    `[N, H]`, of which only its own units count; w: `[H, G]`; units: of `units_of`.
    """
    who, _, address = place
    if words(address, SIZE)[HALVES] == 1:
        product_by_rows(sums[: h.shape[0]], h[:, : w.shape[0]], w)  # cut like a half: compiled once for both
        return sums
    (H, G), (begin, end), half, row = w.shape, units, w.shape[0] // 2, 2 * (turn % 2)
    mine, other = sums[row + who : row + who + 1], sums[row + 1 - who : row + 2 - who]
    if begin == 0:
        product_by_rows(sums[row : row + 1], h[:, :half], w[:half])
    if end == H:
        product_by_rows(sums[row + 1 : row + 2], h[:, half:], w[half:])
    if end - begin < H:
        meet(address, who, turn)
    for gate in range(0, G, H):
        whole, rest = own(mine, 0, units, gate), own(other, 0, units, gate)
        for j in range(whole.size):
            whole[j] += rest[j]
    return mine


@compiled
def product_back_in_a_pair(d, a, w, units, place, turn):  # type: ignore[no-untyped-def]
    """Computes d = a w_h^T for a thread's own units, from all gates. d: `[at least N, H]`; a: `[N, G]`; w: `[H, G]`."""
    who, _, address = place
    (begin, end), H = units, w.shape[0]
    if end - begin < H:
        meet(address, who, turn)
    middle = H // 2 if words(address, SIZE)[HALVES] == 2 else H
    for half in range(2):  # by halves alone too: rows are taken in fours from the first one of a product
        first, last = (begin, min(middle, end)) if half == 0 else (max(middle, begin), end)
        if first < last:
            product_back_by_rows(d[: a.shape[0], first:last], a, w[first:last])
