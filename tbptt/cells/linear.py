"""Cells whose recurrence is linear in the carry: a diagonal one, the minimal GRU and LSTM.

The gates of the minimal cells do not depend on the carry.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus
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


class MinGRUParams(NamedTuple):
    """Blocks z, n side by side, G = 2H. w_x: `[D, G]`, b: `[G]`."""

    w_x: Float[Array, "D G"]
    b: Float[Array, " G"]


class MinGRUCarry(NamedTuple):
    """h: `[*batch, H]`."""

    h: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class MinGRU:
    """The minimal GRU.

        z = sigmoid(x w_xz + b_z)                     z = 1 REPLACES the old h, unlike in `GRU`
        n = x w_xn + b_n
        h' = (1 - z) * h + z * n,    y = h'

    n has no nonlinearity: the appendix of the paper applies a positive g(.) to it so that its scan
    can run in logarithms, which the scan of this library does not do. `parallel_unroll` computes
    the same values as `__call__`, in parallel over time.

    Args (all static):
      input_dim: D, the size of `x`.
      hidden_dim: H, the size of `h` and `y`.
      dtype: the dtype of params and carry; None for JAX's default float.

    References: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi, *Were RNNs all we needed?*, 2024,
    arXiv:2410.01201.
    """

    input_dim: int
    hidden_dim: int
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)

    def init(self, key: PRNGKey) -> MinGRUParams:
        """Draw a Glorot uniform `w_x` for each block; b = 0; the key is consumed."""
        dtype = initializers.float_dtype(self.dtype)
        shape = (self.input_dim, self.hidden_dim)
        return MinGRUParams(
            w_x=initializers.blocks(initializers.glorot_uniform, key, 2, shape, dtype),
            b=jnp.zeros((2 * self.hidden_dim,), dtype),
        )

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> MinGRUCarry:
        """Return h = 0 of shape `[*batch_shape, H]`."""
        return MinGRUCarry(
            jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype))
        )

    def inputs(
        self, params: MinGRUParams, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch G"]:
        """Compute `x w_x + b` for any number of steps."""
        return xs @ params.w_x + params.b

    def recur(
        self, params: MinGRUParams, carry: MinGRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[MinGRUCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        del params
        keep, new = _gru_affine(z)
        h = keep * carry.h + new
        return MinGRUCarry(h), h

    def affine(
        self, params: MinGRUParams, xs: Float[Array, "*time_batch D"]
    ) -> tuple[MinGRUCarry, MinGRUCarry]:
        """Compute `(1 - z, z * n)` for any number of steps."""
        keep, new = _gru_affine(self.inputs(params, xs))
        return MinGRUCarry(keep), MinGRUCarry(new)

    def outputs(
        self, params: MinGRUParams, carries: MinGRUCarry, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch H"]:
        """Return y = h."""
        del params, xs
        return carries.h

    def __call__(
        self, params: MinGRUParams, carry: MinGRUCarry, x: Float[Array, "*batch D"]
    ) -> tuple[MinGRUCarry, Float[Array, "*batch H"]]:
        """Take one step; return `(carry, y)` with `y = h`."""
        return self.recur(params, carry, self.inputs(params, x))


def _gru_affine(z: Float[Array, "*any G"]) -> tuple[Float[Array, "*any H"], Float[Array, "*any H"]]:
    gate, n = jnp.split(z, 2, axis=-1)
    # sigmoid(-gate), because 1 - sigmoid(gate) would round a slow decay.
    return sigmoid(-gate), sigmoid(gate) * n


class MinLSTMParams(NamedTuple):
    """Blocks f, i, n side by side, G = 3H. w_x: `[D, G]`, b: `[G]`."""

    w_x: Float[Array, "D G"]
    b: Float[Array, " G"]


class MinLSTMCarry(NamedTuple):
    """h: `[*batch, H]`."""

    h: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class MinLSTM:
    """The minimal LSTM, with gates that are normalised to sum to 1.

        f = sigmoid(x w_xf + b_f),    i = sigmoid(x w_xi + b_i),    n = x w_xn + b_n
        f' = f / (f + i),    i' = i / (f + i)
        h' = f' * h + i' * n,    y = h'

    n has no nonlinearity (see `MinGRU`). The quotients are computed as f' = sigmoid(log f - log i)
    and i' = sigmoid(log i - log f), so that two closed gates do not give 0 / 0.

    Args (all static):
      input_dim: D, the size of `x`.
      hidden_dim: H, the size of `h` and `y`.
      forget_bias: the initial b_f; 0 makes f' about 1/2, and f' < 1 / (1 + i) for every value.
      dtype: the dtype of params and carry; None for JAX's default float.

    References: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi, *Were RNNs all we needed?*, 2024,
    arXiv:2410.01201.
    """

    input_dim: int
    hidden_dim: int
    forget_bias: float = 1.0
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)

    def init(self, key: PRNGKey) -> MinLSTMParams:
        """Draw a Glorot uniform `w_x` for each block; b_f = forget_bias, other b = 0.

        The key is consumed.
        """
        dtype = initializers.float_dtype(self.dtype)
        shape = (self.input_dim, self.hidden_dim)
        b_f = jnp.full((self.hidden_dim,), self.forget_bias, dtype)
        return MinLSTMParams(
            w_x=initializers.blocks(initializers.glorot_uniform, key, 3, shape, dtype),
            b=jnp.concatenate([b_f, jnp.zeros((2 * self.hidden_dim,), dtype)]),
        )

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> MinLSTMCarry:
        """Return h = 0 of shape `[*batch_shape, H]`."""
        return MinLSTMCarry(
            jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype))
        )

    def inputs(
        self, params: MinLSTMParams, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch G"]:
        """Compute `x w_x + b` for any number of steps."""
        return xs @ params.w_x + params.b

    def recur(
        self, params: MinLSTMParams, carry: MinLSTMCarry, z: Float[Array, "*batch G"]
    ) -> tuple[MinLSTMCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        del params
        keep, new = _lstm_affine(z)
        h = keep * carry.h + new
        return MinLSTMCarry(h), h

    def affine(
        self, params: MinLSTMParams, xs: Float[Array, "*time_batch D"]
    ) -> tuple[MinLSTMCarry, MinLSTMCarry]:
        """Compute `(f', i' * n)` for any number of steps."""
        keep, new = _lstm_affine(self.inputs(params, xs))
        return MinLSTMCarry(keep), MinLSTMCarry(new)

    def outputs(
        self, params: MinLSTMParams, carries: MinLSTMCarry, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch H"]:
        """Return y = h."""
        del params, xs
        return carries.h

    def __call__(
        self, params: MinLSTMParams, carry: MinLSTMCarry, x: Float[Array, "*batch D"]
    ) -> tuple[MinLSTMCarry, Float[Array, "*batch H"]]:
        """Take one step; return `(carry, y)` with `y = h`."""
        return self.recur(params, carry, self.inputs(params, x))


def _lstm_affine(
    z: Float[Array, "*any G"],
) -> tuple[Float[Array, "*any H"], Float[Array, "*any H"]]:
    f, i, n = jnp.split(z, 3, axis=-1)
    odds = softplus(-i) - softplus(-f)  # log f - log i
    return sigmoid(odds), sigmoid(-odds) * n
