"""The gated recurrent unit as it was first published: the reset gate before the matrix product."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from tbptt.cells.gru_base import GRUBase, GRUCarry
from tbptt.cells.products import product
from tbptt.types import PRNGKey


class GRUResetBeforeParams(NamedTuple):
    """w_x: `[D, G]` and b: `[G]` by gate r, z, n (G = 3H); w_h: `[H, 2H]` by gate r, z; w_n: `[H, H]`."""

    w_x: Float[Array, "D G"]
    w_h: Float[Array, "H RZ"]
    w_n: Float[Array, "H H"]
    b: Float[Array, " G"]


@dataclasses.dataclass(frozen=True)
class GRUResetBefore(GRUBase):
    """Steps the GRU with the reset BEFORE the matrix product, as it was first published.

        r = sigmoid(x w_xr + h w_hr + b_r)
        z = sigmoid(x w_xz + h w_hz + b_z)                     z = 1 KEEPS the old h
        n = tanh(x w_xn + (r * h) w_n + b_n)
        h' = (1 - z) * n + z * h,    y = h'

    Args (all static): input_dim D; hidden_dim H; dtype of params and carry (None = JAX's default float);
    compute_dtype of the operands of matrix products (None = dtype).

    References: Cho et al., *Learning phrase representations using RNN encoder-decoder*, EMNLP 2014, arXiv:1406.1078.
    """

    def init(self, key: PRNGKey) -> GRUResetBeforeParams:
        """Draws parameters: w_h, w_n orthogonal by gate, w_x by Glorot's rule, b = 0. The key is consumed."""
        w_x, w_h, b = self._draw(key, 3)
        return GRUResetBeforeParams(w_x, w_h[:, : 2 * self.hidden_dim], w_h[:, 2 * self.hidden_dim :], b)

    def recur(
        self, params: GRUResetBeforeParams, carry: GRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Takes the step from z = x w_x + b."""
        x_rz, x_n = z[..., : 2 * self.hidden_dim], z[..., 2 * self.hidden_dim :]
        reset, keep = jnp.split(sigmoid(x_rz + product(carry.h, params.w_h, self.compute_dtype)), 2, axis=-1)
        n = jnp.tanh(x_n + product(reset * carry.h, params.w_n, self.compute_dtype))
        h = (1 - keep) * n + keep * carry.h
        return GRUCarry(h), h
