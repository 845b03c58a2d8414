"""How many steps are handled at once, and from which size on residuals are rematerialised."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tbptt.cells.base import CellVJP
from tbptt.types import Carry, Params

# Bytes of the input projection of one block of steps: it then stays in a CPU core's cache between the two loops that use
# it. 0.5 to 8 MiB were within 3 % of each other on two CPU cores; without blocks a gradient took 1.02 to 1.4 times as long.
BLOCK_BYTES = 2 << 20
FEWEST_STEPS = 16  # of a block; fewer make the matrix products too small
# Bytes of what a cell saves beside its carries, from which on a block recomputes it in one matrix product instead: it no
# longer fits in the cache. An LSTM's gradient took 1.1 to 1.47 times as long without, up to WIDEST units (two CPU cores).
SAVED_BYTES, WIDEST = 12 << 20, 256


def steps_per_block(step_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Return about how many steps a block has, given the bytes of one step's input projection."""
    return max(FEWEST_STEPS, block_bytes // max(step_bytes, 1))


def block_length(cell_vjp: CellVJP, params: Params, xs: Array, block_bytes: int = BLOCK_BYTES) -> int:
    """Return the number of steps of a block of `xs`."""
    z = jax.eval_shape(lambda p, x: cell_vjp.inputs(cell_vjp.prepare(p), x), params, xs[0])
    return even_share(xs.shape[0], steps_per_block(bytes_of(z), block_bytes))


def even_share(T: int, most: int) -> int:
    """Return a block length of about `most` steps that divides T if possible; T itself up to twice `most`.

    A remainder would be a block of another length: the whole program a second time, to compile and to run.
    """
    if T <= 2 * most:
        return T
    for limit in (most, most * 3 // 2):  # slightly smaller blocks are as fast, larger ones are not
        divisor = max(steps for steps in range(1, min(T, limit) + 1) if T % steps == 0)
        if 2 * divisor >= most:
            return divisor
    return T // math.ceil(T / most)


def steps_kept(cell_vjp: CellVJP, params: Params, carry: Carry, x: Any) -> float:
    """Return the number of steps from which on saved intermediates are rematerialised; infinite if they never are.

    Args:
      carry, x: those of one step, arrays or their shapes.
    """

    def save(params: Params, carry: Carry, x: Array) -> Any:
        weights = cell_vjp.prepare(params)
        return cell_vjp.forward(weights, carry, cell_vjp.inputs(weights, x))[2]

    saved = bytes_of(jax.eval_shape(save, params, carry, x))
    width = max(leaf.shape[-1] if leaf.ndim else 1 for leaf in jax.tree.leaves(carry))
    return math.inf if width > WIDEST or not saved else SAVED_BYTES / saved


def bytes_of(tree: Any) -> int:
    """Count the bytes of a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
