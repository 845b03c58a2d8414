"""What the two published forms of the gated recurrent unit share: sizes, the zero start, and the input side."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tbptt.cells import initializers
from tbptt.cells.products import input_side
from tbptt.types import PRNGKey


class GRUCarry(NamedTuple):
    """h: `[*batch, H]`."""

    h: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class GRUBase:
    """What both conventions share: sizes, the zero start, and the input side."""

    input_dim: int
    hidden_dim: int
    dtype: DTypeLike | None = None
    compute_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> GRUCarry:
        """Makes h = 0, `[*batch_shape, H]`."""
        return GRUCarry(jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype)))

    def inputs(self, params: Any, xs: Float[Array, "*time_batch D"]) -> Float[Array, "*time_batch G"]:
        """Computes x w_x + b for any number of steps."""
        return input_side(xs, params.w_x, params.b, self.compute_dtype)

    def __call__(
        self, params: Any, carry: GRUCarry, x: Float[Array, "*batch D"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Takes one step; returns (carry, y) with y = h."""
        return self.recur(params, carry, self.inputs(params, x))

    def recur(self, params: Any, carry: GRUCarry, z: Float[Array, "*batch G"]) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Takes the step from z = x w_x + b: where the two conventions differ."""
        raise NotImplementedError

    def _draw(self, key: PRNGKey, recurrent_blocks: int) -> tuple[Array, Array, Array]:
        dtype = initializers.float_dtype(self.dtype)
        key_x, key_h = jax.random.split(key)
        D, H = self.input_dim, self.hidden_dim
        w_x = initializers.blocks(initializers.glorot_uniform, key_x, 3, (D, H), dtype)
        w_h = initializers.blocks(initializers.orthogonal, key_h, recurrent_blocks, (H, H), dtype)
        return w_x, w_h, jnp.zeros((3 * H,), dtype)
