"""A diagonal linear recurrence: every gradient through it has a closed form, so it is the exact test bench."""

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
    """Steps independent leaky integrators.

        h_t = a * h_{t-1} + x_t w_x + b,    y_t = h_t

    so dh_t/dh_{t-k} = diag(a^k), and of the gradient dh_t/db = (1 - a^t) / (1 - a) a window of k steps sees the share
    (1 - a^k) / (1 - a^t).

    Args (all static):
      input_dim, hidden_dim: D and H.
      a_min, a_max: the decays start evenly drawn between them.
      dtype: of params and carry; None = JAX's default float.
    """

    input_dim: int
    hidden_dim: int
    a_min: float = 0.5
    a_max: float = 0.99
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)

    def init(self, key: PRNGKey) -> DiagonalLinearParams:
        """Draws parameters: a ~ U(a_min, a_max), w_x by Glorot's rule, b = 0. The key is consumed."""
        dtype = initializers.float_dtype(self.dtype)
        key_a, key_x = jax.random.split(key)
        return DiagonalLinearParams(
            a=jax.random.uniform(key_a, (self.hidden_dim,), dtype, self.a_min, self.a_max),
            w_x=initializers.glorot_uniform(key_x, (self.input_dim, self.hidden_dim), dtype),
            b=jnp.zeros((self.hidden_dim,), dtype),
        )

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> DiagonalLinearCarry:
        """Makes h = 0, `[*batch_shape, H]`."""
        return DiagonalLinearCarry(jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype)))

    def inputs(self, params: DiagonalLinearParams, xs: Float[Array, "*time_batch D"]) -> Float[Array, "*time_batch H"]:
        """Computes x w_x + b for any number of steps."""
        return xs @ params.w_x + params.b

    def recur(
        self, params: DiagonalLinearParams, carry: DiagonalLinearCarry, z: Float[Array, "*batch H"]
    ) -> tuple[DiagonalLinearCarry, Float[Array, "*batch H"]]:
        """Takes the step from z = x w_x + b."""
        h = params.a * carry.h + z
        return DiagonalLinearCarry(h), h

    def affine(
        self, params: DiagonalLinearParams, xs: Float[Array, "*time_batch D"]
    ) -> tuple[DiagonalLinearCarry, DiagonalLinearCarry]:
        """Computes (a, x w_x + b) for any number of steps: h_t is linear in h_{t-1}."""
        b = self.inputs(params, xs)
        return DiagonalLinearCarry(jnp.broadcast_to(params.a, b.shape)), DiagonalLinearCarry(b)

    def outputs(
        self, params: DiagonalLinearParams, carries: DiagonalLinearCarry, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch H"]:
        """Returns y = h."""
        del params, xs
        return carries.h

    def __call__(
        self, params: DiagonalLinearParams, carry: DiagonalLinearCarry, x: Float[Array, "*batch D"]
    ) -> tuple[DiagonalLinearCarry, Float[Array, "*batch H"]]:
        """Takes one step; returns (carry, y) with y = h."""
        return self.recur(params, carry, self.inputs(params, x))
