"""A step's product in compiled loops, by the layout of the weights: as they are (`[K, G]`) or packed (`[J, K, C]`)."""

from typing import Any

from tbptt.native.frame import implements
from tbptt.native.halves import product_back_in_a_pair, product_in_a_pair
from tbptt.native.tiles import product_by_tiles


def multiply(work: Any, h: Any, w: Any, lanes: Any, units: Any, place: Any, turn: Any) -> Any:
    """Computes h w_h; returns where it is, `[N, at least G]`: of the lanes given, or for the units given of each gate.

    work: see `call_loop`; h: `[N, H]`; w: `Weights.ahead`; lanes: of `lanes_of`; units: of `units_of`, in this turn.
    """
    raise NotImplementedError("only in compiled loops")


def multiply_back(out: Any, a: Any, w: Any, lanes: Any, units: Any, place: Any, turn: Any) -> None:
    """Computes out = a w_h^T, as above. out: `[N, at least H]`; a: `[N, G]`; w: `Weights.behind`, transposed if packed."""
    raise NotImplementedError("only in compiled loops")


@implements(multiply)
def _multiply(work, h, w, lanes, units, place, turn):  # type: ignore[no-untyped-def]
    def by_tiles(work, h, w, lanes, units, place, turn):  # type: ignore[no-untyped-def]
        product_by_tiles(work[lanes[0] : lanes[1]], h[lanes[0] : lanes[1]], w)
        return work

    def by_rows(work, h, w, lanes, units, place, turn):  # type: ignore[no-untyped-def]
        return product_in_a_pair(work, h, w, units, place, turn)

    return by_tiles if w.ndim == len("JKC") else by_rows


@implements(multiply_back)
def _multiply_back(out, a, w, lanes, units, place, turn):  # type: ignore[no-untyped-def]
    def by_tiles(out, a, w, lanes, units, place, turn):  # type: ignore[no-untyped-def]
        product_by_tiles(out[lanes[0] : lanes[1]], a[lanes[0] : lanes[1]], w)

    def by_rows(out, a, w, lanes, units, place, turn):  # type: ignore[no-untyped-def]
        product_back_in_a_pair(out, a, w, units, place, turn)

    return by_tiles if w.ndim == len("JKC") else by_rows
