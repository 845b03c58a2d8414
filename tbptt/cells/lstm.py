"""Long short-term memory with a forget gate.

`LocalLSTM` has no derivatives between units: its exact gradient is the e-prop rule.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tbptt.cells import initializers
from tbptt.cells.matmul import outer_and_sum, product, project_inputs
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
    """Long short-term memory.

        i, f, o = sigmoid(x w_x + h w_h + b) by blocks,    g = tanh(x w_xg + h w_hg + b_g)
        c' = f * c + i * g
        h' = o * tanh(c'),    y = h'

    Args (all static):
      input_dim: D, the size of `x`.
      hidden_dim: H, the size of `h`, `c` and `y`.
      forget_bias: the initial b_f; 1 keeps the forget gate mostly open early in training.
      longest_lag: a number of steps, at least 3, for chrono initialisation instead of
        `forget_bias`: b_f = log u with u ~ U(1, longest_lag - 1) and b_i = -b_f, so that the time
        scales of the units cover 1 .. longest_lag steps.
      dtype: the dtype of params and carry; None for JAX's default float.
      compute_dtype: the dtype of the operands of matrix products, for example `jnp.bfloat16`; sums,
        gates and the carry keep `dtype`. None for `dtype`.

    Returns:
      A cell: `init(key) -> LSTMParams` with `w_x [D, 4H]`, `w_h [H, 4H]`, `b [4H]`;
      `initial_carry(batch_shape) -> LSTMCarry` with `h` and `c [*batch_shape, H]`; and
      `cell(params, carry, x) -> (carry, y)` with `x [*batch, D]` and `y [*batch, H]`.

    Raises:
      ValueError: a size is not a Python int of at least 1, or `longest_lag` is below 3.

    Example:
      >>> import jax, jax.numpy as jnp, tbptt
      >>> cell = tbptt.LSTM(input_dim=2, hidden_dim=8)
      >>> params = cell.init(jax.random.key(0))
      >>> carry, y = cell(params, cell.initial_carry((4,)), jnp.ones((4, 2)))
      >>> y.shape
      (4, 8)

    References: Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000;
    forget bias 1: Jozefowicz, Zaremba and Sutskever 2015; chrono: Tallec and Ollivier 2018,
    arXiv:1804.11188.
    """

    input_dim: int
    hidden_dim: int
    forget_bias: float = 1.0
    longest_lag: int | None = None
    dtype: DTypeLike | None = None
    compute_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)
        initializers.check_longest_lag(self)

    def init(self, key: PRNGKey) -> LSTMParams:
        """Draw parameters; the key is consumed.

        Each gate's `w_h` is orthogonal and its `w_x` Glorot uniform; b_g = b_o = 0, and b_i = 0
        unless `longest_lag` is given.
        """
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
        """Return h = 0 and c = 0, each of shape `[*batch_shape, H]`."""
        zero = jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype))
        return LSTMCarry(h=zero, c=zero)

    def inputs(
        self, params: LSTMParams, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch G"]:
        """Compute `x w_x + b` for any number of steps."""
        return project_inputs(xs, params.w_x, params.b, self.compute_dtype)

    def recur(
        self, params: LSTMParams, carry: LSTMCarry, z: Float[Array, "*batch G"]
    ) -> tuple[LSTMCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        i, f, g, o = jnp.split(z + product(carry.h, params.w_h, self.compute_dtype), 4, axis=-1)
        c = sigmoid(f) * carry.c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return LSTMCarry(h=h, c=c), h

    def __call__(
        self, params: LSTMParams, carry: LSTMCarry, x: Float[Array, "*batch D"]
    ) -> tuple[LSTMCarry, Float[Array, "*batch H"]]:
        """Take one step; return `(carry, y)` with `y = h`."""
        return self.recur(params, carry, self.inputs(params, x))

    @property
    def backprop(self) -> "LSTMVJP":
        """The hand-written forward and backward pass, which `unroll` uses."""
        return LSTMVJP(self.compute_dtype)


class LSTMWeights(NamedTuple):
    """w_x, w_h, b with the columns of i, f and o halved; back: `[G, H]`, `w_h.T` unscaled."""

    w_x: Float[Array, "D G"]
    w_h: Float[Array, "H G"]
    b: Float[Array, " G"]
    back: Float[Array, "G H"]


class LSTMFactors(NamedTuple):
    """The factors of a backward step: dc/dh, d(c or h)/d(pre-activation) by gate, and f."""

    c_of_h: Float[Array, "*steps H"]
    gates: Float[Array, "*steps G"]
    f: Float[Array, "*steps H"]


@dataclasses.dataclass(frozen=True)
class LSTMVJP:
    """The forward and backward pass of `LSTM`: a `CellVJP`.

        a = x w_x + h w_h + b;   t = tanh(a / 2) for i, f, o, and tanh(a) for g        [t is saved]
        i, f, o = (1 + t) / 2 by blocks, because sigmoid(a) = (1 + tanh(a / 2)) / 2;    g = t_g
        dh = d_h' + d_y;  dc = d_c' + dh * o (1 - tanh(c')^2)
        da = (dc, dc, dc, dh) * (g i (1 - i), c f (1 - f), i (1 - g^2), tanh(c') o (1 - o))
        d_h = da w_h^T;  d_c = dc * f

    XLA vectorises one tanh over all gates on CPU, but not four activations of four slices.
    """

    compute: DTypeLike | None

    def prepare(self, params: LSTMParams) -> LSTMWeights:
        # With numpy, so that XLA does not recompute the repetition with every gradient.
        half = np.repeat(np.asarray([0.5, 0.5, 1.0, 0.5], params.b.dtype), params.w_h.shape[0])
        return LSTMWeights(params.w_x * half, params.w_h * half, params.b * half, params.w_h.T)

    def inputs(self, weights: LSTMWeights, xs: Array) -> Array:
        return project_inputs(xs, weights.w_x, weights.b, self.compute)

    def forward(
        self, weights: LSTMWeights, carry: LSTMCarry, z: Array
    ) -> tuple[LSTMCarry, Array, Array]:
        t = jnp.tanh(z + product(carry.h, weights.w_h, self.compute))
        i, f, g, o = jnp.split(t, 4, axis=-1)
        c = 0.5 * ((f + 1) * carry.c + (i + 1) * g)
        h = 0.5 * (o + 1) * jnp.tanh(c)
        return LSTMCarry(h=h, c=c), h, t

    def gates(self, weights: LSTMWeights, xs: Array, entering: LSTMCarry) -> Array:
        return jnp.tanh(self.inputs(weights, xs) + product(entering.h, weights.w_h, self.compute))

    def linearize(
        self,
        weights: LSTMWeights,
        xs: Array,
        entering: LSTMCarry,
        leaving: LSTMCarry,
        saved: Array | None,
    ) -> tuple[Array, LSTMFactors]:
        t = self.gates(weights, xs, entering) if saved is None else saved
        i, f, g, o = jnp.split(t, 4, axis=-1)
        i, f, o, tanh_c = 0.5 * (i + 1), 0.5 * (f + 1), 0.5 * (o + 1), jnp.tanh(leaving.c)
        # d sigmoid(a) = (1 - t^2) / 4 da and d tanh(a) = (1 - t^2) da.
        quarter = np.repeat(np.asarray([0.25, 0.25, 1.0, 0.25], t.dtype), tanh_c.shape[-1])
        gates = jnp.concatenate([g, entering.c, i, tanh_c], axis=-1) * ((1 - t * t) * quarter)
        return weights.back, LSTMFactors(o * (1 - tanh_c * tanh_c), gates, f)

    def backward(
        self, common: Array, factors: LSTMFactors, d_leaving: LSTMCarry, d_y: Array
    ) -> tuple[LSTMCarry, Array]:
        d_h = d_leaving.h + d_y
        d_c = d_leaving.c + d_h * factors.c_of_h
        d_a = jnp.concatenate([d_c, d_c, d_c, d_h], axis=-1) * factors.gates
        return LSTMCarry(h=product(d_a, common, self.compute), c=d_c * factors.f), d_a

    def collect(
        self,
        params: LSTMParams,
        xs: Array,
        entering: LSTMCarry,
        leaving: LSTMCarry,
        factors: LSTMFactors | None,
        emitted: Array,
    ) -> tuple[LSTMParams, Array]:
        w, b = outer_and_sum(jnp.concatenate([xs, entering.h], axis=-1), emitted, self.compute)
        w_x, w_h = w[: xs.shape[-1]], w[xs.shape[-1] :]
        return LSTMParams(w_x, w_h, b), product(emitted, params.w_x.T, self.compute)


@dataclasses.dataclass(frozen=True)
class LocalLSTM(LSTM):
    """An LSTM whose gates treat the last output as a constant; its values are those of `LSTM`.

        a_t = stop_gradient(h_{t-1}) w_h + x_t w_x + b,    so that dc_t/dc_{t-1} = diag(f_t)

    The gradient flows through each unit's own memory only. An exact estimator of this cell
    (`sparse_rtrl`, at the cost of a diagonal recurrence, or `full_bptt`) computes e-prop with
    symmetric feedback, which is a biased gradient of the LSTM.

    Args (all static): those of `LSTM`. Params and carries are those of `LSTM` too, so parameters
    trained with one cell can be used with the other.

    References: Bellec et al., *A solution to the learning dilemma for recurrent networks of spiking
    neurons*, Nature Communications 11, 2020. RFLO (Murray, eLife 2019) is the same rule with a
    leaky memory.
    """

    backprop = None  # type: ignore[assignment]  # that of LSTM differentiates another step

    def recur(
        self, params: LSTMParams, carry: LSTMCarry, z: Float[Array, "*batch G"]
    ) -> tuple[LSTMCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        return super().recur(params, carry._replace(h=jax.lax.stop_gradient(carry.h)), z)
