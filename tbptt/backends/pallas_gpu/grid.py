"""What the kernels share: how rows and columns are cut into tiles, products of tiles, and the call over the rows."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

# The smallest side of a tile that tensor cores multiply; the rows of one program.
ROWS = 16
# Columns of a tile; wider layers are cut into several pieces. A square tile in float32 is then 64 KiB of shared memory.
WIDEST = 128
# Columns of a layer: all tiles of a step are written out in one loop's body. With four pieces of 128 Triton (3.9, for
# compute capability 9.0) spilled kilobytes of registers and compiled for minutes; with two it spilled less than 1 KiB.
LARGEST = 256
# Bytes of the recurrent weights that a program reads once, before its first step, and that Triton then keeps in shared
# memory; larger ones are read at every step, from the cache. Chosen to fit every GPU with tensor cores for float32.
RESIDENT = 64 << 10


def tile_width(H: int) -> int:
    """Returns the columns of a tile for a layer of H units: a power of two, as Triton wants all its sizes."""
    return min(WIDEST, max(ROWS, 1 << (H - 1).bit_length()))


def padded(size: int, tile: int) -> int:
    """Returns the smallest positive multiple of a tile that holds `size`."""
    return tile * max(1, -(-size // tile))


def columns(block: int, n: int, H: int) -> slice:
    """Returns where the n-th piece of a gate's block of H columns stands."""
    P = tile_width(H)
    start = block * H + n * P
    return slice(start, start + P)


def column_tiles(ref: Any) -> tuple[Array, ...]:
    """Reads `[rows, H]` as tiles of columns."""
    H = ref.shape[-1]
    return tuple(ref[:, columns(0, n, H)] for n in range(H // tile_width(H)))


def tiles(ref: Any, H: int) -> Callable[[int, int], Array]:
    """Returns the reader of a weight matrix by (row, column) of its square tiles: held from the start if it is small."""
    P = tile_width(H)

    def read(k: int, n: int) -> Array:
        return ref[k * P : (k + 1) * P, n * P : (n + 1) * P]

    if math.prod(ref.shape) * jnp.dtype(ref.dtype).itemsize > RESIDENT:
        return read
    held = {(k, n): read(k, n) for k in range(ref.shape[0] // P) for n in range(ref.shape[1] // P)}
    return lambda k, n: held[k, n]


def dot(a: Array, tile: Array, dtype: DTypeLike) -> Array:
    """Multiplies a tile of rows with one of weights, in the weights' dtype; the sum runs in `dtype`."""
    return jnp.dot(a.astype(tile.dtype), tile, preferred_element_type=dtype)


def chosen(flags: Array | None, a: Array, b: Array | int) -> Array:
    """Selects rows by flags `[rows, 1]`: a where they stand, else b; without flags a."""
    return a if flags is None else jnp.where(flags != 0, a, b)


def cleared(flags: Array | None, a: Array) -> Array:
    """Puts 0 into the rows where flags `[rows, 1]` stand."""
    return a if flags is None else jnp.where(flags != 0, 0, a)


def flag_column(flags: Array | None) -> Array | None:
    """Makes of flags `[T, N]` what a kernel reads: integers `[T, N, 1]`."""
    return None if flags is None else flags.astype(jnp.int32)[..., None]


def at(ref: Any, t: Any) -> Array | None:
    """Reads one step of optional flags, `[rows, 1]`."""
    return None if ref is None else ref[t]


def over_batch_rows(
    body: Callable[[Any, Any, Any], None], rows: Any, shared: Any, out: Any, H: int, interpret: bool
) -> Any:
    """Runs `body(rows, shared, out)`, all three of references, once for every ROWS rows. Programs share no writes.

    Args:
      rows: a pytree of arrays `[..., N, X]`, of which a program sees its own rows.
      shared: a pytree of arrays that every program sees whole.
      out: a pytree of shapes `[..., N, X]`.
      H: static; the layer's units, which say how many warps work on a tile.
      interpret: static; run the body by Pallas's interpreter, on any backend.
    """
    # Only here: importing this library must not need what Pallas imports.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    ins, in_tree = jax.tree.flatten((rows, shared))
    outs, out_tree = jax.tree.flatten(out)
    own = len(jax.tree.leaves(rows))

    def block(a: Any) -> Any:
        rank = a.ndim - 2
        return pl.BlockSpec((*a.shape[:-2], ROWS, a.shape[-1]), lambda i: (*(0,) * rank, i, 0))

    def whole(a: Any) -> Any:
        return pl.BlockSpec(a.shape, lambda i: (0,) * a.ndim)

    def kernel(*refs: Any) -> None:
        read, written = refs[: len(ins)], refs[len(ins) :]
        own_refs, shared_refs = jax.tree.unflatten(in_tree, read)
        body(own_refs, shared_refs, jax.tree.unflatten(out_tree, written))

    made = pl.pallas_call(
        kernel,
        grid=(outs[0].shape[-2] // ROWS,),
        in_specs=[block(a) for a in ins[:own]] + [whole(a) for a in ins[own:]],
        out_specs=[block(a) for a in outs],
        out_shape=outs,
        compiler_params=triton.CompilerParams(num_warps=8 if tile_width(H) == WIDEST else 4, num_stages=1),
        interpret=interpret,
    )(*ins)
    return jax.tree.unflatten(out_tree, made)
