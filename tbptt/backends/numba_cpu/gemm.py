"""Matrix product for several batch rows, in tiles whose sums stay in registers.

    for j in range(J):                              # COLUMNS columns of w at a time
        for rows in split(range(N)):                # at most ROWS batch rows at a time
            tile = zeros(rows, COLUMNS)             # in registers
            for k in range(K):
                tile += h[rows, k] * packed[j, k]   # a number times a vector, for every row
            out[rows, j * COLUMNS : (j + 1) * COLUMNS] = tile

`python -m benchmarks.peers` measures its effect on training.
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

VECTOR = 16  # numbers of one LLVM vector, which LLVM splits over several registers if needed
# The sums fill the registers that the weights leave: 32 registers of 512 bits hold 8 rows of two
# vectors, 16 of 256 bits hold 4 rows of one.
ROWS, VECTORS = (8, 2) if WIDE else (4, 1)
COLUMNS = VECTORS * VECTOR
PACKED_NDIM = 3  # the rank of packed weights `[J, K, C]`; that of plain weights is 2


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
