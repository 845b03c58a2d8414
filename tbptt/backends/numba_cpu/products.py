"""Matrix products of compiled loops with plain weights (`gemv`) and with packed weights (`gemm`).

`gemv` is for one or few batch rows and reads plain weights once. `gemm` is for several batch rows
and works in tiles whose sums stay in registers:

    for j in range(J):                              # COLUMNS columns of w at a time
        for rows in split(range(N)):                # at most ROWS batch rows at a time
            tile = zeros(rows, COLUMNS)             # in registers
            for k in range(K):
                tile += h[rows, k] * packed[j, k]   # a number times a vector, for every row
            out[rows, j * COLUMNS : (j + 1) * COLUMNS] = tile

`python -m benchmarks.peers` measures the effect on training.
"""

from typing import Any

import jax.numpy as jnp
import numba
from jaxtyping import Array, Float
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from tbptt.backends.numba_cpu.xla_ffi import WIDE, compiled, implements, use_wide_vectors

VECTOR = 16  # numbers of one LLVM vector, which LLVM splits over several registers if needed
# The sums fill the registers that the weights leave: 32 registers of 512 bits hold 8 rows of two
# vectors, 16 of 256 bits hold 4 rows of one.
ROWS, VECTORS = (8, 2) if WIDE else (4, 1)
COLUMNS = VECTORS * VECTOR
PACKED_NDIM = 3  # the rank of packed weights `[J, K, C]`; that of plain weights is 2


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


@compiled
def gemv(a, h, w):  # type: ignore[no-untyped-def]
    """Compute a = h w. a: `[N, G]`, h: `[N, K]`, w: `[K, G]`.

    The loop takes four rows of w at once, which reads and writes `a` a quarter as often, and two
    batch rows at once, which reads `w` half as often.
    """
    use_wide_vectors()
    (N, G), K = a.shape, h.shape[1]
    pairs, fours = N - N % 2, K - K % 4
    a[:] = 0
    for k in range(0, fours, 4):
        for n in range(0, pairs, 2):
            h0, h1, h2, h3 = h[n, k], h[n, k + 1], h[n, k + 2], h[n, k + 3]
            g0, g1, g2, g3 = h[n + 1, k], h[n + 1, k + 1], h[n + 1, k + 2], h[n + 1, k + 3]
            for j in range(G):
                w0, w1, w2, w3 = w[k, j], w[k + 1, j], w[k + 2, j], w[k + 3, j]
                a[n, j] += (h0 * w0 + h1 * w1) + (h2 * w2 + h3 * w3)
                a[n + 1, j] += (g0 * w0 + g1 * w1) + (g2 * w2 + g3 * w3)
        for n in range(pairs, N):
            h0, h1, h2, h3 = h[n, k], h[n, k + 1], h[n, k + 2], h[n, k + 3]
            for j in range(G):
                a[n, j] += (h0 * w[k, j] + h1 * w[k + 1, j]) + (h2 * w[k + 2, j] + h3 * w[k + 3, j])
    for k in range(fours, K):
        for n in range(N):
            for j in range(G):
                a[n, j] += h[n, k] * w[k, j]


@compiled
def gemv_transposed(d, a, w):  # type: ignore[no-untyped-def]
    """Compute d = a w^T without a transpose. d: `[N, K]`, a: `[N, G]`, w: `[K, G]`.

    The loop takes four rows of w and two batch rows at once.
    """
    use_wide_vectors()
    (N, K), G = d.shape, a.shape[1]
    zero, pairs, fours = a.dtype.type(0), N - N % 2, K - K % 4
    for k in range(0, fours, 4):
        for n in range(0, pairs, 2):
            s0, s1, s2, s3, r0, r1, r2, r3 = zero, zero, zero, zero, zero, zero, zero, zero
            for j in range(G):
                x, y = a[n, j], a[n + 1, j]
                w0, w1, w2, w3 = w[k, j], w[k + 1, j], w[k + 2, j], w[k + 3, j]
                s0, s1, s2, s3 = s0 + x * w0, s1 + x * w1, s2 + x * w2, s3 + x * w3
                r0, r1, r2, r3 = r0 + y * w0, r1 + y * w1, r2 + y * w2, r3 + y * w3
            _put_four(d[n], k, s0, s1, s2, s3)
            _put_four(d[n + 1], k, r0, r1, r2, r3)
        for n in range(pairs, N):
            s0, s1, s2, s3 = zero, zero, zero, zero
            for j in range(G):
                x = a[n, j]
                s0, s1 = s0 + x * w[k, j], s1 + x * w[k + 1, j]
                s2, s3 = s2 + x * w[k + 2, j], s3 + x * w[k + 3, j]
            _put_four(d[n], k, s0, s1, s2, s3)
    for k in range(fours, K):
        for n in range(N):
            s0 = zero
            for j in range(G):
                s0 += a[n, j] * w[k, j]
            d[n, k] = s0


@compiled
def _put_four(d, k, s0, s1, s2, s3):  # type: ignore[no-untyped-def]
    d[k] = s0
    d[k + 1] = s1
    d[k + 2] = s2
    d[k + 3] = s3


def pack(w: Float[Array, "K G"]) -> Float[Array, "J K C"]:
    """Lay out weights for `gemm`: blocks of C = COLUMNS columns, the last one padded with zeros."""
    K, G = w.shape
    return jnp.pad(w, ((0, 0), (0, -G % COLUMNS))).reshape(K, -1, COLUMNS).swapaxes(0, 1)


@compiled
def gemm(out, h, w):  # type: ignore[no-untyped-def]
    """Compute out = h w. out: `[N, J C]`, h: `[N, K]`, w: `[J, K, C]`, packed; all contiguous."""
    N = h.shape[0]
    for j in range(w.shape[0]):
        n = 0
        # Of equal size: small tiles are slow.
        for tiles_left in range((N + ROWS - 1) // ROWS, 0, -1):
            rows = (N - n) // tiles_left
            _tile(out, h, w, n, j, rows)  # type: ignore[reportCallIssue]
            n += rows


@intrinsic
def _tile(typing_context, out, h, w, n, j, rows):  # type: ignore[no-untyped-def]
    """Compute a tile of `rows` rows (1 to ROWS); LLVM code contains one loop per row count."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [
            context.make_array(array_type)(context, builder, a)
            for array_type, a in zip(signature.args, args[:3], strict=False)
        ]
        n, j, rows = args[3:]
        end = builder.append_basic_block("gemm.end")
        impossible = builder.append_basic_block("gemm.impossible")
        switch = builder.switch(rows, impossible)
        builder.position_at_end(impossible)
        builder.unreachable()
        for count in range(1, ROWS + 1):
            block = builder.append_basic_block(f"gemm.{count}")
            switch.add_case(ir.Constant(rows.type, count), block)
            builder.position_at_end(block)
            _build_tile(context, builder, signature.args[:3], arrays, n, j, count)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    size = numba.types.intp
    return numba.types.void(out, h, w, size, size, size), build


def _build_tile(
    context: Any, builder: Any, array_types: Any, arrays: Any, n: Any, j: Any, rows: int
) -> None:
    """Build the loop over k of one tile, with its sums in registers."""
    number, size = context.get_data_type(array_types[0].dtype), n.type
    vector, alignment = ir.VectorType(number, VECTOR), array_types[0].dtype.bitwidth // 8
    none, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    same = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)

    def constant(value: int) -> Any:
        return ir.Constant(size, value)

    def at(which: int, *indices: Any) -> Any:
        return cgutils.get_item_pointer(
            context, builder, array_types[which], arrays[which], indices
        )

    def vectors(start: Any) -> list[Any]:
        places = [builder.gep(start, [constant(v * VECTOR)]) for v in range(VECTORS)]
        return [builder.bitcast(place, vector.as_pointer()) for place in places]

    row_indices = [builder.add(n, constant(r)) for r in range(rows)]
    h_rows = [at(1, row, constant(0)) for row in row_indices]
    weights = at(2, j, constant(0), constant(0))
    K = cgutils.unpack_tuple(builder, arrays[1].shape)[1]
    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(size)
    sums = [builder.phi(vector) for _ in range(rows * VECTORS)]
    ws = [
        builder.load(p, align=alignment)
        for p in vectors(builder.gep(weights, [builder.mul(k, constant(COLUMNS))]))
    ]
    new = []
    for r in range(rows):
        x = builder.insert_element(none, builder.load(builder.gep(h_rows[r], [k])), first)
        x = builder.shuffle_vector(x, none, same)
        for v in range(VECTORS):
            times = builder.fmul(x, ws[v], flags=("contract",))
            new.append(builder.fadd(sums[r * VECTORS + v], times, flags=("contract",)))
    following = builder.add(k, constant(1))
    builder.cbranch(builder.icmp_signed("<", following, K), loop, after)
    k.add_incoming(constant(0), before)
    k.add_incoming(following, loop)
    for phi, value in zip(sums, new, strict=True):
        phi.add_incoming(ir.Constant(vector, None), before)
        phi.add_incoming(value, loop)

    builder.position_at_end(after)
    for r, row in enumerate(row_indices):
        for v, place in enumerate(vectors(at(0, row, builder.mul(j, constant(COLUMNS))))):
            builder.store(new[r * VECTORS + v], place, align=alignment)
