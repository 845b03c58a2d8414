"""The recurrent product of a step: `gemm` for packed weights, `gemv` for plain weights."""

from typing import Any

from tbptt.backends.numba_cpu.gemm import PACKED_NDIM, gemm
from tbptt.backends.numba_cpu.gemv import gemv, gemv_transposed
from tbptt.backends.numba_cpu.xla_ffi import implements


def multiply(out: Any, h: Any, w: Any, rows: Any) -> Any:
    """Compute and return out = h w_h for a range of rows.

    out: `[N, at least G]`; h: `[N, H]`; w: `Weights.w_forward`.
    """
    raise NotImplementedError("only in compiled loops")


def multiply_back(out: Any, a: Any, w: Any, rows: Any) -> None:
    """Compute out = a w_h^T for a range of rows.

    out: `[N, at least H]`; a: `[N, G]`; w: `Weights.w_backward`.
    """
    raise NotImplementedError("only in compiled loops")


@implements(multiply)
def _multiply(out, h, w, rows):  # type: ignore[no-untyped-def]
    def packed(out, h, w, rows):  # type: ignore[no-untyped-def]
        gemm(out[rows[0] : rows[1]], h[rows[0] : rows[1]], w)
        return out

    def plain(out, h, w, rows):  # type: ignore[no-untyped-def]
        gemv(out[rows[0] : rows[1]], h[rows[0] : rows[1]], w)
        return out

    return packed if w.ndim == PACKED_NDIM else plain


@implements(multiply_back)
def _multiply_back(out, a, w, rows):  # type: ignore[no-untyped-def]
    def packed(out, a, w, rows):  # type: ignore[no-untyped-def]
        gemm(out[rows[0] : rows[1]], a[rows[0] : rows[1]], w)

    def plain(out, a, w, rows):  # type: ignore[no-untyped-def]
        gemv_transposed(out[rows[0] : rows[1]], a[rows[0] : rows[1]], w)

    return packed if w.ndim == PACKED_NDIM else plain
