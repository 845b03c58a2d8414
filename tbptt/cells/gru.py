"""The gated recurrent unit in its two published conventions: the reset gate after, or before, the matrix product."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tbptt.cells import initializers
from tbptt.types import PRNGKey


class GRUParams(NamedTuple):
    """Gate blocks r, z, n side by side, G = 3H. w_x: `[D, G]`, w_h: `[H, G]`, b: `[G]`, b_n: `[H]` (inside the reset)."""

    w_x: Float[Array, "D G"]
    w_h: Float[Array, "H G"]
    b: Float[Array, " G"]
    b_n: Float[Array, " H"]


class GRUResetBeforeParams(NamedTuple):
    """w_x: `[D, G]` and b: `[G]` by gate r, z, n (G = 3H); w_h: `[H, 2H]` by gate r, z; w_n: `[H, H]`."""

    w_x: Float[Array, "D G"]
    w_h: Float[Array, "H RZ"]
    w_n: Float[Array, "H H"]
    b: Float[Array, " G"]


class GRUCarry(NamedTuple):
    """h: `[*batch, H]`."""

    h: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class _GRUBase:
    """What both conventions share: sizes, the zero start, and the input side."""

    input_dim: int
    hidden_dim: int
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> GRUCarry:
        """Makes h = 0, `[*batch_shape, H]`."""
        return GRUCarry(jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype)))

    def inputs(
        self, params: GRUParams | GRUResetBeforeParams, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch G"]:
        """Computes x w_x + b for any number of steps."""
        return xs @ params.w_x + params.b

    def _draw(self, key: PRNGKey, recurrent_blocks: int) -> tuple[Array, Array, Array]:
        dtype = initializers.float_dtype(self.dtype)
        key_x, key_h = jax.random.split(key)
        D, H = self.input_dim, self.hidden_dim
        w_x = initializers.blocks(initializers.glorot_uniform, key_x, 3, (D, H), dtype)
        w_h = initializers.blocks(initializers.orthogonal, key_h, recurrent_blocks, (H, H), dtype)
        return w_x, w_h, jnp.zeros((3 * H,), dtype)


@dataclasses.dataclass(frozen=True)
class GRU(_GRUBase):
    """Steps the GRU with the reset AFTER the matrix product, as cuDNN, PyTorch, Keras and Flax compute it.

        r = sigmoid(x w_xr + h w_hr + b_r)
        z = sigmoid(x w_xz + h w_hz + b_z)                     z = 1 KEEPS the old h
        n = tanh(x w_xn + b + r * (h w_hn + b_n))
        h' = (1 - z) * n + z * h,    y = h'

    Args (all static): input_dim D; hidden_dim H; dtype of params and carry (None = JAX's default float).

    References: Cho et al., arXiv:1406.1078v3 (2014), in the form that Appleyard et al., arXiv:1604.01946, made fast.
    """

    def init(self, key: PRNGKey) -> GRUParams:
        """Draws parameters: w_h orthogonal by gate, w_x by Glorot's rule by gate, biases 0. The key is consumed."""
        w_x, w_h, b = self._draw(key, 3)
        return GRUParams(w_x, w_h, b, jnp.zeros((self.hidden_dim,), b.dtype))

    def recur(
        self, params: GRUParams, carry: GRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Takes the step from z = x w_x + b."""
        x_r, x_z, x_n = jnp.split(z, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(carry.h @ params.w_h, 3, axis=-1)
        keep = sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + sigmoid(x_r + h_r) * (h_n + params.b_n))
        h = (1 - keep) * n + keep * carry.h
        return GRUCarry(h), h

    def __call__(
        self, params: GRUParams, carry: GRUCarry, x: Float[Array, "*batch D"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Takes one step; returns (carry, y) with y = h."""
        return self.recur(params, carry, self.inputs(params, x))


@dataclasses.dataclass(frozen=True)
class GRUResetBefore(_GRUBase):
    """Steps the GRU with the reset BEFORE the matrix product, as it was first published.

        r = sigmoid(x w_xr + h w_hr + b_r)
        z = sigmoid(x w_xz + h w_hz + b_z)                     z = 1 KEEPS the old h
        n = tanh(x w_xn + (r * h) w_n + b_n)
        h' = (1 - z) * n + z * h,    y = h'

    Args (all static): input_dim D; hidden_dim H; dtype of params and carry (None = JAX's default float).

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
        reset, keep = jnp.split(sigmoid(x_rz + carry.h @ params.w_h), 2, axis=-1)
        n = jnp.tanh(x_n + (reset * carry.h) @ params.w_n)
        h = (1 - keep) * n + keep * carry.h
        return GRUCarry(h), h

    def __call__(
        self, params: GRUResetBeforeParams, carry: GRUCarry, x: Float[Array, "*batch D"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Takes one step; returns (carry, y) with y = h."""
        return self.recur(params, carry, self.inputs(params, x))
