"""The length of a block of steps, and the size from which residuals are rematerialised."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tbptt.cells.base import CellVJP
from tbptt.types import Carry, Params

# Bytes of the input projection of one block of steps, so that it stays in the cache of a CPU core
# between the two loops that use it. Measured by `python -m benchmarks.full_vs_truncated`.
BLOCK_BYTES = 2 << 20
MIN_STEPS = 16  # of a block; with fewer the matrix products are too small
# Bytes of saved intermediates from which a block recomputes them in one matrix product, because
# they no longer fit in the cache of a CPU core. It saves time up to MAX_WIDTH units.
SAVED_BYTES, MAX_WIDTH = 12 << 20, 256


def steps_per_block(step_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Return the approximate steps of a block, from the bytes of one step's input projection."""
    return max(MIN_STEPS, block_bytes // max(step_bytes, 1))


def block_length(
    cell_vjp: CellVJP, params: Params, xs: Array, block_bytes: int = BLOCK_BYTES
) -> int:
    """Return the number of steps of a block of `xs`."""
    z = jax.eval_shape(lambda p, x: cell_vjp.inputs(cell_vjp.prepare(p), x), params, xs[0])
    return even_block_length(xs.shape[0], steps_per_block(bytes_of(z), block_bytes))


def even_block_length(T: int, most: int) -> int:
    """Return a block length of about `most` steps that divides T if possible; T up to twice `most`.

    A remainder is a block of another length, which compiles the loops a second time.
    """
    if T <= 2 * most:
        return T
    for limit in (most, most * 3 // 2):  # prefer the smaller block
        divisor = max(steps for steps in range(1, min(T, limit) + 1) if T % steps == 0)
        if 2 * divisor >= most:
            return divisor
    return T // math.ceil(T / most)


def max_saved_steps(cell_vjp: CellVJP, params: Params, carry: Carry, x: Any) -> float:
    """Return the number of steps up to which saved intermediates are residuals; inf if always.

    Args:
      params, carry, x: those of one step, arrays or their shapes.
    """

    def save(params: Params, carry: Carry, x: Array) -> Any:
        weights = cell_vjp.prepare(params)
        return cell_vjp.forward(weights, carry, cell_vjp.inputs(weights, x))[2]

    saved = bytes_of(jax.eval_shape(save, params, carry, x))
    width = max(leaf.shape[-1] if leaf.ndim else 1 for leaf in jax.tree.leaves(carry))
    return math.inf if width > MAX_WIDTH or not saved else SAVED_BYTES / saved


def bytes_of(tree: Any) -> int:
    """Return the bytes of a pytree of arrays or of their shapes."""
    return sum(
        math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )
