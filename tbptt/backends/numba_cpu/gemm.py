"""A product for several lanes, in tiles whose sums stay in registers while the weights, laid out for it, pass by.

    for j in range(J):                              # COLUMNS columns of w at a time
        for rows in pieces_of(N):                   # at most ROWS lanes at a time
            tile = zeros(rows, COLUMNS)             # registers
            for k in range(K):
                tile += h[rows, k] * packed[j, k]   # a number times a vector, for every lane
            out[rows, j * COLUMNS : (j + 1) * COLUMNS] = tile

One core with AVX-512 does 108 to 115 GFLOP/s so at 4 to 32 lanes and K, G = 128 to 2,048, where one thread of PyTorch did
67 at 16 lanes and 82 at 32, K, G = 256, 1,024 (2026-11-26, the same machine).
"""

from typing import Any

import jax.numpy as jnp
import numba
from jaxtyping import Array, Float
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from tbptt.backends.numba_cpu.vector_width import WIDE
from tbptt.backends.numba_cpu.xla_ffi import compiled

VECTOR = 16  # numbers that are computed with at once; LLVM makes several registers of it where one does not hold them
# As many sums as registers hold beside the weights: 32 of 512 bits have room for 8 lanes of two vectors, 16 of 256 for 4 of
# one.
ROWS, VECTORS = (8, 2) if WIDE else (4, 1)
COLUMNS = VECTORS * VECTOR
PACKED_NDIM = 3  # of packed weights `[J, K, C]`; plain ones have 2


def pack(w: Float[Array, "K G"]) -> Float[Array, "J K C"]:
    """Lays out weights for `gemm`: C = COLUMNS columns side by side, zeros beyond the last one."""
    K, G = w.shape
    return jnp.pad(w, ((0, 0), (0, -G % COLUMNS))).reshape(K, -1, COLUMNS).swapaxes(0, 1)


@compiled
def gemm(out, h, w):  # type: ignore[no-untyped-def]
    """Computes out = h w. out: `[N, J C]`, h: `[N, K]`, w: `[J, K, C]`, packed; all without gaps."""
    N = h.shape[0]
    for j in range(w.shape[0]):
        n = 0
        for pieces in range((N + ROWS - 1) // ROWS, 0, -1):  # of equal size, as few rows do not fill the pipelines
            rows = (N - n) // pieces
            _tile(out, h, w, n, j, rows)  # type: ignore[reportCallIssue]
            n += rows


@intrinsic
def _tile(typing_context, out, h, w, n, j, rows):  # type: ignore[no-untyped-def]
    """Computes `rows` (1 to ROWS) rows of a tile: a loop for each number of them."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [context.make_array(kind)(context, builder, a) for kind, a in zip(signature.args, args[:3], strict=False)]
        n, j, rows = args[3:]
        end = builder.append_basic_block("tiles.end")
        impossible = builder.append_basic_block("tiles.impossible")
        switch = builder.switch(rows, impossible)
        builder.position_at_end(impossible)
        builder.unreachable()
        for count in range(1, ROWS + 1):
            block = builder.append_basic_block(f"tiles.{count}")
            switch.add_case(ir.Constant(rows.type, count), block)
            builder.position_at_end(block)
            _build_tile(context, builder, signature.args[:3], arrays, n, j, count)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    size = numba.types.intp
    return numba.types.void(out, h, w, size, size, size), build


def _build_tile(context: Any, builder: Any, kinds: Any, arrays: Any, n: Any, j: Any, rows: int) -> None:
    """Writes the loop over k, its sums in registers."""
    number, size = context.get_data_type(kinds[0].dtype), n.type
    vector, alignment = ir.VectorType(number, VECTOR), kinds[0].dtype.bitwidth // 8
    none, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    same = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)

    def constant(value: int) -> Any:
        return ir.Constant(size, value)

    def at(which: int, *indices: Any) -> Any:
        return cgutils.get_item_pointer(context, builder, kinds[which], arrays[which], indices)

    def vectors(start: Any) -> list[Any]:
        places = [builder.gep(start, [constant(v * VECTOR)]) for v in range(VECTORS)]
        return [builder.bitcast(place, vector.as_pointer()) for place in places]

    lanes = [builder.add(n, constant(r)) for r in range(rows)]
    h_rows = [at(1, lane, constant(0)) for lane in lanes]
    weights = at(2, j, constant(0), constant(0))
    K = cgutils.unpack_tuple(builder, arrays[1].shape)[1]
    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(size)
    sums = [builder.phi(vector) for _ in range(rows * VECTORS)]
    ws = [builder.load(p, align=alignment) for p in vectors(builder.gep(weights, [builder.mul(k, constant(COLUMNS))]))]
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
    for r, lane in enumerate(lanes):
        for v, place in enumerate(vectors(at(0, lane, builder.mul(j, constant(COLUMNS))))):
            builder.store(new[r * VECTORS + v], place, align=alignment)
