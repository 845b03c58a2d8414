"""A step's product in compiled loops, by the layout of the weights: as they are (`[K, G]`) or packed (`[J, K, C]`)."""

from typing import Any, no_type_check

from numba.extending import overload

from tbptt.native.frame import RELAXED
from tbptt.native.rows import product_back_by_rows, product_by_rows
from tbptt.native.tiles import product_by_tiles


def multiply(out: Any, h: Any, w: Any, lanes: Any) -> None:
    """Computes out = h w_h of some lanes; of all by `rows`, which runs in one part.

    out: `[N, at least G]`; h: `[N, H]`; w: `Weights.ahead`; lanes: from the first to before the last.
    """
    raise NotImplementedError("only in compiled loops")


def multiply_back(out: Any, a: Any, w: Any, lanes: Any) -> None:
    """Computes out = a w_h^T, as above. out: `[N, at least H]`; a: `[N, G]`; w: `Weights.behind`, transposed if packed."""
    raise NotImplementedError("only in compiled loops")


@overload(multiply, jit_options={"fastmath": RELAXED})
@no_type_check
def _multiply(out, h, w, lanes):  # type: ignore[no-untyped-def]
    if w.ndim == len("JKC"):
        return lambda out, h, w, lanes: product_by_tiles(out[lanes[0] : lanes[1]], h[lanes[0] : lanes[1]], w)
    return lambda out, h, w, lanes: product_by_rows(out, h, w)


@overload(multiply_back, jit_options={"fastmath": RELAXED})
@no_type_check
def _multiply_back(out, a, w, lanes):  # type: ignore[no-untyped-def]
    if w.ndim == len("JKC"):
        return lambda out, a, w, lanes: product_by_tiles(out[lanes[0] : lanes[1]], a[lanes[0] : lanes[1]], w)
    return lambda out, a, w, lanes: product_back_by_rows(out, a, w)
