"""How many steps are handled at once, in one place."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tbptt.types import Backprop, Carry, Params

# Bytes of the input side of one block. Of 0.5 to 8 MiB and no blocks, 2 MiB was fastest or within 3 % of it on two CPU
# cores, at T, B, D, H = (1000, 32, 32, 128), (2000, 8, 8, 128), (64, 32, 82, 256) and (200, 64, 512, 512); without blocks
# it was 1.02 to 1.4 times slower. What fills two blocks is one: two of them move copies, and 64 steps of 16 lanes and 256
# units took 1.05 times as long by compiled loops. The accelerators' size was not measured: it wants large products, and few
# loops.
CPU_BLOCK, ACCELERATOR_BLOCK = 2 << 20, 256 << 20
FEWEST = 16  # steps; fewer leave products too small
# From this many bytes on, what a cell saves beside its carries is computed again instead: it has left the cache, and one
# product for a block brings it back as fast. An LSTM's gradient on two CPU cores, seconds kept / computed again: 1.47 at
# T, B, H = (500, 32, 64), 1.35 at (300, 32, 128), 1.10 at (1000, 32, 128), 1.06 at (150, 64, 256); below 10 MiB 0.85 to
# 0.96; at H = 512, where the product costs more, 0.87. Accelerators were not measured.
CPU_SAVED, WIDEST = 12 << 20, 256


def block_of(step: int) -> int:
    """Returns about how many steps a block should have, given the bytes of one step's input side."""
    target = CPU_BLOCK if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK
    return max(FEWEST, target // max(step, 1))


def block_steps(back: Backprop, params: Params, xs: Array) -> int:
    """Returns the steps of a block of xs."""
    z = jax.eval_shape(lambda p, x: back.inputs(back.prepare(p), x), params, xs[0])
    return share(xs.shape[0], block_of(bytes_of(z)))


def share(T: int, most: int) -> int:
    """Returns the steps of a block: T up to twice the room, else the largest divisor of about that size, or an even share.

    What is left over of an even share is a block of another length: the whole program once more, to compile and to run.
    """
    if T <= 2 * most:
        return T
    for limit in (most, most * 3 // 2):  # blocks that are a little smaller are as fast, larger ones are not
        divisor = max(steps for steps in range(1, min(T, limit) + 1) if T % steps == 0)
        if 2 * divisor >= most:
            return divisor
    return T // math.ceil(T / most)


def steps_kept(back: Backprop, params: Params, carry: Carry, x: Any) -> float:
    """Returns the steps from which on what `back.forward` saves is better computed again; infinite where it never is.

    Args: carry and x, one step's (arrays or their shapes).
    """

    def save(params: Params, carry: Carry, x: Array) -> Any:
        weights = back.prepare(params)
        return back.forward(weights, carry, back.inputs(weights, x))[2]

    saved = bytes_of(jax.eval_shape(save, params, carry, x))
    width = max(leaf.shape[-1] if leaf.ndim else 1 for leaf in jax.tree.leaves(carry))
    if jax.default_backend() != "cpu" or width > WIDEST or not saved:
        return math.inf
    return CPU_SAVED / saved


def bytes_of(tree: Any) -> int:
    """Counts the bytes of a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
