"""How many steps are handled at once, in one place."""

import math

import jax
from jaxtyping import Array

from tbptt.types import Backprop, Params

# Bytes of the input side of one block. Of 0.5 to 8 MiB and no blocks, 2 MiB was fastest or within 3 % of it on two CPU
# cores, at T, B, D, H = (1000, 32, 32, 128), (2000, 8, 8, 128), (64, 32, 82, 256) and (200, 64, 512, 512); without blocks
# it was 1.02 to 1.4 times slower. The accelerators' size was not measured: it wants large products, and few loops.
CPU_BLOCK, ACCELERATOR_BLOCK = 2 << 20, 256 << 20
FEWEST = 16  # steps; fewer leave products too small


def block_of(step: int) -> int:
    """Returns the most steps of a block, given the bytes of one step's input side."""
    target = CPU_BLOCK if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK
    return max(FEWEST, target // max(step, 1))


def block_steps(back: Backprop, params: Params, xs: Array) -> int:
    """Returns the steps of a block: T if it is small, else an even share of it."""
    T = xs.shape[0]
    z = jax.eval_shape(lambda p, x: back.inputs(back.prepare(p), x), params, xs[0])
    most = block_of(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(z)))
    return T if most >= T else T // math.ceil(T / most)
