"""Long short-term memory, with a forget gate."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tbptt.cells import initializers
from tbptt.types import PRNGKey


class LSTMParams(NamedTuple):
    """Gate blocks i, f, g, o side by side, G = 4H. w_x: `[D, G]`, w_h: `[H, G]`, b: `[G]`."""

    w_x: Float[Array, "D G"]
    w_h: Float[Array, "H G"]
    b: Float[Array, " G"]


class LSTMCarry(NamedTuple):
    """h: `[*batch, H]` the output, c: `[*batch, H]` the cell state."""

    h: Float[Array, "*batch H"]
    c: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class LSTM:
    """Steps the LSTM.

        i, f, o = sigmoid(x w_x + h w_h + b) by blocks,    g = tanh(x w_xg + h w_hg + b_g)
        c' = f * c + i * g
        h' = o * tanh(c'),    y = h'

    Args (all static):
      input_dim, hidden_dim: D and H.
      forget_bias: b_f at the start; 1 keeps the memory open while nothing is learnt yet.
      longest_lag: if given (steps, at least 3), chrono initialisation instead: b_f = log u with u ~ U(1, longest_lag - 1)
        and b_i = -b_f, so that the units' time scales cover 1 .. longest_lag steps.
      dtype: of params and carry; None = JAX's default float.

    References: Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000; forget bias 1:
    Jozefowicz, Zaremba and Sutskever 2015; chrono: Tallec and Ollivier 2018, arXiv:1804.11188.
    """

    input_dim: int
    hidden_dim: int
    forget_bias: float = 1.0
    longest_lag: int | None = None
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)
        if self.longest_lag is not None and self.longest_lag < 3:
            raise ValueError(
                f"LSTM.longest_lag must be at least 3 steps (log U(1, longest_lag - 1) needs room); "
                f"got {self.longest_lag}; leave it None for a constant forget_bias"
            )

    def init(self, key: PRNGKey) -> LSTMParams:
        """Draws parameters: w_h orthogonal by gate, w_x by Glorot's rule by gate, b as above. The key is consumed."""
        dtype = initializers.float_dtype(self.dtype)
        key_x, key_h, key_b = jax.random.split(key, 3)
        D, H = self.input_dim, self.hidden_dim
        zero = jnp.zeros((H,), dtype)
        if self.longest_lag is None:
            b_i, b_f = zero, jnp.full((H,), self.forget_bias, dtype)
        else:
            b_f = initializers.chrono(key_b, H, self.longest_lag, dtype)
            b_i = -b_f
        return LSTMParams(
            w_x=initializers.blocks(initializers.glorot_uniform, key_x, 4, (D, H), dtype),
            w_h=initializers.blocks(initializers.orthogonal, key_h, 4, (H, H), dtype),
            b=jnp.concatenate([b_i, b_f, zero, zero]),
        )

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> LSTMCarry:
        """Makes h = 0 and c = 0, each `[*batch_shape, H]`."""
        zero = jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype))
        return LSTMCarry(h=zero, c=zero)

    def inputs(self, params: LSTMParams, xs: Float[Array, "*time_batch D"]) -> Float[Array, "*time_batch G"]:
        """Computes x w_x + b for any number of steps."""
        return xs @ params.w_x + params.b

    def recur(
        self, params: LSTMParams, carry: LSTMCarry, z: Float[Array, "*batch G"]
    ) -> tuple[LSTMCarry, Float[Array, "*batch H"]]:
        """Takes the step from z = x w_x + b."""
        i, f, g, o = jnp.split(z + carry.h @ params.w_h, 4, axis=-1)
        c = sigmoid(f) * carry.c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return LSTMCarry(h=h, c=c), h

    def __call__(
        self, params: LSTMParams, carry: LSTMCarry, x: Float[Array, "*batch D"]
    ) -> tuple[LSTMCarry, Float[Array, "*batch H"]]:
        """Takes one step; returns (carry, y) with y = h."""
        return self.recur(params, carry, self.inputs(params, x))
