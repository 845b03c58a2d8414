"""A diagonal linear recurrence, whose gradients have closed forms."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tbptt.cells import initializers
from tbptt.types import PRNGKey


class DiagonalLinearParams(NamedTuple):
    """a: `[H]` the decay of each unit, w_x: `[D, H]`, b: `[H]`."""

    a: Float[Array, " H"]
    w_x: Float[Array, "D H"]
    b: Float[Array, " H"]


class DiagonalLinearCarry(NamedTuple):
    """h: `[*batch, H]`."""

    h: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class DiagonalLinear:
    """Independent leaky integrators.

        h_t = a * h_{t-1} + x_t w_x + b,    y_t = h_t

    Every gradient has a closed form: dh_t/dh_{t-k} = diag(a^k) and dh_t/db = (1 - a^t) / (1 - a),
    of which a window of k steps captures the share (1 - a^k) / (1 - a^t).

    Args (all static):
      input_dim: D, the size of `x`.
      hidden_dim: H, the size of `h` and `y`.
      a_min, a_max: the bounds of the uniform distribution of the initial decays.
      dtype: the dtype of params and carry; None for JAX's default float.
    """

    input_dim: int
    hidden_dim: int
    a_min: float = 0.5
    a_max: float = 0.99
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)

    def init(self, key: PRNGKey) -> DiagonalLinearParams:
        """Draw `a ~ U(a_min, a_max)` and a Glorot uniform `w_x`; b = 0; the key is consumed."""
        dtype = initializers.float_dtype(self.dtype)
        key_a, key_x = jax.random.split(key)
        return DiagonalLinearParams(
            a=jax.random.uniform(key_a, (self.hidden_dim,), dtype, self.a_min, self.a_max),
            w_x=initializers.glorot_uniform(key_x, (self.input_dim, self.hidden_dim), dtype),
            b=jnp.zeros((self.hidden_dim,), dtype),
        )

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> DiagonalLinearCarry:
        """Return h = 0 of shape `[*batch_shape, H]`."""
        return DiagonalLinearCarry(
            jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype))
        )

    def inputs(
        self, params: DiagonalLinearParams, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch H"]:
        """Compute `x w_x + b` for any number of steps."""
        return xs @ params.w_x + params.b

    def recur(
        self, params: DiagonalLinearParams, carry: DiagonalLinearCarry, z: Float[Array, "*batch H"]
    ) -> tuple[DiagonalLinearCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        h = params.a * carry.h + z
        return DiagonalLinearCarry(h), h

    def affine(
        self, params: DiagonalLinearParams, xs: Float[Array, "*time_batch D"]
    ) -> tuple[DiagonalLinearCarry, DiagonalLinearCarry]:
        """Compute `(a, x w_x + b)` for any number of steps."""
        b = self.inputs(params, xs)
        return DiagonalLinearCarry(jnp.broadcast_to(params.a, b.shape)), DiagonalLinearCarry(b)

    def outputs(
        self,
        params: DiagonalLinearParams,
        carries: DiagonalLinearCarry,
        xs: Float[Array, "*time_batch D"],
    ) -> Float[Array, "*time_batch H"]:
        """Return y = h."""
        del params, xs
        return carries.h

    def __call__(
        self, params: DiagonalLinearParams, carry: DiagonalLinearCarry, x: Float[Array, "*batch D"]
    ) -> tuple[DiagonalLinearCarry, Float[Array, "*batch H"]]:
        """Take one step; return `(carry, y)` with `y = h`."""
        return self.recur(params, carry, self.inputs(params, x))
