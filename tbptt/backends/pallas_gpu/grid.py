"""Tiles of rows and columns, products of tiles, and the kernel call over batch rows."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

# Batch rows of one program: the smallest side of a tile that tensor cores multiply.
TILE_ROWS = 16
# Columns of a tile; wider layers use several tiles. A square float32 tile takes 64 KiB of shared
# memory.
MAX_TILE_WIDTH = 128
# Units of a layer. The loop body contains all tiles of a step; with four tiles of 128 columns,
# Triton 3.9 for compute capability 9.0 spills kilobytes of registers, with two less than 1 KiB.
MAX_UNITS = 256
# Bytes of recurrent weights that a program reads once, before its first step, and that Triton keeps
# in shared memory; larger weights are read at every step. It fits every GPU with TF32 tensor cores.
RESIDENT_BYTES = 64 << 10


def tile_width(H: int) -> int:
    """Return the columns of a tile for H units: a power of two, as Triton requires."""
    return min(MAX_TILE_WIDTH, max(TILE_ROWS, 1 << (H - 1).bit_length()))


def padded(size: int, tile: int) -> int:
    """Return the smallest positive multiple of `tile` that is at least `size`."""
    return tile * max(1, -(-size // tile))


def tile_columns(block: int, n: int, H: int) -> slice:
    """Return the columns of tile n of a gate block of H columns."""
    width = tile_width(H)
    start = block * H + n * width
    return slice(start, start + width)


def column_tiles(ref: Any) -> tuple[Array, ...]:
    """Read `[rows, H]` as tiles of columns."""
    H = ref.shape[-1]
    return tuple(ref[:, tile_columns(0, n, H)] for n in range(H // tile_width(H)))


def weight_tiles(ref: Any, H: int) -> Callable[[int, int], Array]:
    """Return a function that reads a square tile of a weight matrix by (row, column).

    Small matrices are read once, here.
    """
    width = tile_width(H)

    def read(k: int, n: int) -> Array:
        return ref[k * width : (k + 1) * width, n * width : (n + 1) * width]

    if math.prod(ref.shape) * jnp.dtype(ref.dtype).itemsize > RESIDENT_BYTES:
        return read
    held = {
        (k, n): read(k, n)
        for k in range(ref.shape[0] // width)
        for n in range(ref.shape[1] // width)
    }
    return lambda k, n: held[k, n]


def dot(a: Array, tile: Array, dtype: DTypeLike) -> Array:
    """Multiply a tile of rows with one of weights, in the weights' dtype; sum in `dtype`."""
    return jnp.dot(a.astype(tile.dtype), tile, preferred_element_type=dtype)


def select_rows(flags: Array | None, a: Array, b: Array | int) -> Array:
    """Return `a` in rows where `flags [rows, 1]` is set, else `b`; `a` if `flags` is None."""
    return a if flags is None else jnp.where(flags != 0, a, b)


def zero_where(flags: Array | None, a: Array) -> Array:
    """Set rows to 0 where `flags [rows, 1]` is set."""
    return a if flags is None else jnp.where(flags != 0, 0, a)


def flag_column(flags: Array | None) -> Array | None:
    """Convert flags `[T, N]` to integers `[T, N, 1]`, which kernels can read."""
    return None if flags is None else flags.astype(jnp.int32)[..., None]


def flags_at(ref: Any, t: Any) -> Array | None:
    """Read optional flags of one step, `[rows, 1]`."""
    return None if ref is None else ref[t]


def call_over_rows(
    body: Callable[[Any, Any, Any], None], rows: Any, shared: Any, out: Any, H: int, interpret: bool
) -> Any:
    """Run `body(rows, shared, out)` of references once for every TILE_ROWS batch rows.

    Args:
      body: the kernel; static.
      rows: a pytree of arrays `[..., N, X]`; a program reads its own rows.
      shared: a pytree of arrays that every program reads whole.
      out: a pytree of shapes `[..., N, X]`; a program writes its own rows.
      H: the units of the layer, which determine the number of warps; static.
      interpret: run the body in the interpreter of Pallas, on any platform; static.
    """
    # Imported here, because `import tbptt` must not need the dependencies of Pallas.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    ins, in_tree = jax.tree.flatten((rows, shared))
    outs, out_tree = jax.tree.flatten(out)
    own = len(jax.tree.leaves(rows))

    def block(a: Any) -> Any:
        rank = a.ndim - 2
        return pl.BlockSpec((*a.shape[:-2], TILE_ROWS, a.shape[-1]), lambda i: (*(0,) * rank, i, 0))

    def whole(a: Any) -> Any:
        return pl.BlockSpec(a.shape, lambda i: (0,) * a.ndim)

    def kernel(*refs: Any) -> None:
        read, written = refs[: len(ins)], refs[len(ins) :]
        own_refs, shared_refs = jax.tree.unflatten(in_tree, read)
        body(own_refs, shared_refs, jax.tree.unflatten(out_tree, written))

    made = pl.pallas_call(
        kernel,
        grid=(outs[0].shape[-2] // TILE_ROWS,),
        in_specs=[block(a) for a in ins[:own]] + [whole(a) for a in ins[own:]],
        out_specs=[block(a) for a in outs],
        out_shape=outs,
        compiler_params=triton.CompilerParams(
            num_warps=8 if tile_width(H) == MAX_TILE_WIDTH else 4, num_stages=1
        ),
        interpret=interpret,
    )(*ins)
    return jax.tree.unflatten(out_tree, made)
