"""A step's product in compiled loops, by the layout of the weights: as they are (`[K, G]`) or packed (`[J, K, C]`)."""

from typing import Any, no_type_check

from numba.extending import overload

from tbptt.native.frame import RELAXED
from tbptt.native.rows import product_back_by_rows, product_by_rows
from tbptt.native.tiles import product_by_tiles


def multiply(out: Any, h: Any, w: Any) -> None:
    """Computes out = h w_h. out: `[N, at least G]`, h: `[N, H]`, w: `Weights.ahead`."""
    raise NotImplementedError("only in compiled loops")


def multiply_back(out: Any, a: Any, w: Any) -> None:
    """Computes out = a w_h^T. out: `[N, at least H]`, a: `[N, G]`, w: `Weights.behind`, which if packed is transposed."""
    raise NotImplementedError("only in compiled loops")


@overload(multiply, jit_options={"fastmath": RELAXED})
@no_type_check
def _multiply(out, h, w):  # type: ignore[no-untyped-def]
    if w.ndim == len("JKC"):
        return lambda out, h, w: product_by_tiles(out, h, w)
    return lambda out, h, w: product_by_rows(out, h, w)


@overload(multiply_back, jit_options={"fastmath": RELAXED})
@no_type_check
def _multiply_back(out, a, w):  # type: ignore[no-untyped-def]
    if w.ndim == len("JKC"):
        return lambda out, a, w: product_by_tiles(out, a, w)
    return lambda out, a, w: product_back_by_rows(out, a, w)
