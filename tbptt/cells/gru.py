"""The gated recurrent unit, with the reset gate after or before the recurrent matrix product.

`LocalGRU` has no derivatives between units: its exact gradient is the e-prop rule.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tbptt.cells import initializers
from tbptt.cells.matmul import outer_and_sum, product, project_inputs
from tbptt.types import PRNGKey


class GRUCarry(NamedTuple):
    """h: `[*batch, H]`."""

    h: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class GRUBase:
    """Sizes, initial carry and input projection, which both conventions share."""

    input_dim: int
    hidden_dim: int
    longest_lag: int | None = None
    dtype: DTypeLike | None = None
    compute_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)
        initializers.check_longest_lag(self)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> GRUCarry:
        """Return h = 0 of shape `[*batch_shape, H]`."""
        return GRUCarry(
            jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype))
        )

    def inputs(
        self, params: Any, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch G"]:
        """Compute `x w_x + b` for any number of steps."""
        return project_inputs(xs, params.w_x, params.b, self.compute_dtype)

    def __call__(
        self, params: Any, carry: GRUCarry, x: Float[Array, "*batch D"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Take one step; return `(carry, y)` with `y = h`."""
        return self.recur(params, carry, self.inputs(params, x))

    def recur(
        self, params: Any, carry: GRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`; the two conventions differ here."""
        raise NotImplementedError

    def _draw(self, key: PRNGKey, recurrent_blocks: int) -> tuple[Array, Array, Array]:
        dtype = initializers.float_dtype(self.dtype)
        key_x, key_h = jax.random.split(key)
        D, H = self.input_dim, self.hidden_dim
        w_x = initializers.blocks(initializers.glorot_uniform, key_x, 3, (D, H), dtype)
        w_h = initializers.blocks(initializers.orthogonal, key_h, recurrent_blocks, (H, H), dtype)
        b = jnp.zeros((3 * H,), dtype)
        if self.longest_lag is not None:
            b_z = initializers.chrono(jax.random.fold_in(key, 2), H, self.longest_lag, dtype)
            b = b.at[H : 2 * H].set(b_z)
        return w_x, w_h, b


class GRUParams(NamedTuple):
    """Gate blocks r, z, n side by side, G = 3H.

    w_x: `[D, G]`, w_h: `[H, G]`, b: `[G]`, b_n: `[H]` (the bias inside the reset product).
    """

    w_x: Float[Array, "D G"]
    w_h: Float[Array, "H G"]
    b: Float[Array, " G"]
    b_n: Float[Array, " H"]


@dataclasses.dataclass(frozen=True)
class GRU(GRUBase):
    """The GRU with the reset AFTER the matrix product, as in cuDNN, PyTorch, Keras and Flax.

        r = sigmoid(x w_xr + h w_hr + b_r)
        z = sigmoid(x w_xz + h w_hz + b_z)                     z = 1 KEEPS the old h
        n = tanh(x w_xn + b + r * (h w_hn + b_n))
        h' = (1 - z) * n + z * h,    y = h'

    Args (all static):
      input_dim: D, the size of `x`.
      hidden_dim: H, the size of `h` and `y`.
      longest_lag: a number of steps, at least 3, for chrono initialisation: b_z = log u with
        u ~ U(1, longest_lag - 1), so that the time scales of the units cover 1 .. longest_lag
        steps. None: b_z = 0, time scales of 2 steps.
      dtype: the dtype of params and carry; None for JAX's default float.
      compute_dtype: the dtype of the operands of matrix products; None for `dtype`.

    Returns:
      A cell: `init(key) -> GRUParams` with `w_x [D, 3H]`, `w_h [H, 3H]`, `b [3H]`, `b_n [H]`;
      `initial_carry(batch_shape) -> GRUCarry` with `h [*batch_shape, H]`; and
      `cell(params, carry, x) -> (carry, y)` with `x [*batch, D]` and `y [*batch, H]`.

    Raises:
      ValueError: a size is not a Python int of at least 1, or `longest_lag` is below 3.

    References: Cho et al., arXiv:1406.1078v3 (2014), in the form of Appleyard et al.,
    arXiv:1604.01946, which needs one recurrent product a step; chrono: Tallec and Ollivier 2018,
    arXiv:1804.11188.
    """

    def init(self, key: PRNGKey) -> GRUParams:
        """Draw parameters; the key is consumed.

        Each gate's `w_h` is orthogonal and its `w_x` Glorot uniform; biases are 0, b_z unless
        `longest_lag` is given.
        """
        w_x, w_h, b = self._draw(key, 3)
        return GRUParams(w_x, w_h, b, jnp.zeros((self.hidden_dim,), b.dtype))

    def recur(
        self, params: GRUParams, carry: GRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        x_r, x_z, x_n = jnp.split(z, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(product(carry.h, params.w_h, self.compute_dtype), 3, axis=-1)
        keep = sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + sigmoid(x_r + h_r) * (h_n + params.b_n))
        h = (1 - keep) * n + keep * carry.h
        return GRUCarry(h), h

    @property
    def backprop(self) -> "GRUVJP":
        """The hand-written forward and backward pass, which `unroll` uses."""
        return GRUVJP(self.compute_dtype)


class GRUWeights(NamedTuple):
    """w_x, w_h, b with the columns of r and z halved; b_n; back: `[G, H]`, `w_h.T` unscaled."""

    w_x: Float[Array, "D G"]
    w_h: Float[Array, "H G"]
    b: Float[Array, " G"]
    b_n: Float[Array, " H"]
    back: Float[Array, "G H"]


class GRUFactors(NamedTuple):
    """dh'/d(h w_h) by gate, dh'/d(x w_xn), and z = dh'/dh for constant gates."""

    gates: Float[Array, "*steps G"]
    n: Float[Array, "*steps H"]
    z: Float[Array, "*steps H"]


@dataclasses.dataclass(frozen=True)
class GRUVJP:
    """The forward and backward pass of `GRU`: a `CellVJP`.

    r, z = (1 + t) / 2  with t = tanh((x w_x + h w_h + b) / 2)
    m = h w_hn + b_n;  n = tanh(x w_xn + b + r * m)                  [t, n, m are saved]
    dh = d_h' + d_y                                                  [emitted]
    q = (1 - z) (1 - n^2);   da = (dh, dh, dh) * (q m r (1 - r), (h - n) z (1 - z), q r)
    d_h = dh * z + da w_h^T
    """

    compute: DTypeLike | None

    def prepare(self, params: GRUParams) -> GRUWeights:
        # As in LSTMVJP.
        H, dtype = params.w_h.shape[0], params.b.dtype
        # Not a constant array: `jax.lax.cond` under `jax.vmap` would batch it.
        half = jnp.where(jnp.arange(3 * H) < 2 * H, jnp.asarray(0.5, dtype), jnp.asarray(1, dtype))
        return GRUWeights(
            params.w_x * half, params.w_h * half, params.b * half, params.b_n, params.w_h.T
        )

    def inputs(self, weights: GRUWeights, xs: Array) -> Array:
        return project_inputs(xs, weights.w_x, weights.b, self.compute)

    def forward(
        self, weights: GRUWeights, carry: GRUCarry, z: Array
    ) -> tuple[GRUCarry, Array, tuple[Array, ...]]:
        H = carry.h.shape[-1]
        a = product(carry.h, weights.w_h, self.compute)
        t = jnp.tanh(z[..., : 2 * H] + a[..., : 2 * H])
        m = a[..., 2 * H :] + weights.b_n
        n = jnp.tanh(z[..., 2 * H :] + 0.5 * (t[..., :H] + 1) * m)
        h = n + 0.5 * (t[..., H:] + 1) * (carry.h - n)
        return GRUCarry(h), h, (t, n, m)

    def linearize(
        self,
        weights: GRUWeights,
        xs: Array,
        entering: GRUCarry,
        leaving: GRUCarry,
        saved: tuple[Array, ...] | None,
    ) -> tuple[Array, GRUFactors]:
        t, n, m = (
            self.forward(weights, entering, self.inputs(weights, xs))[2] if saved is None else saved
        )
        r, z = jnp.split(0.5 * (t + 1), 2, axis=-1)
        q = (1 - z) * (1 - n * n)
        gates = [q * m * r * (1 - r), (entering.h - n) * z * (1 - z), q * r]
        return weights.back, GRUFactors(jnp.concatenate(gates, axis=-1), q, z)

    def backward(
        self, common: Array, factors: GRUFactors, d_leaving: GRUCarry, d_y: Array
    ) -> tuple[GRUCarry, Array]:
        d_h = d_leaving.h + d_y
        d_a = jnp.concatenate([d_h, d_h, d_h], axis=-1) * factors.gates
        return GRUCarry(d_h * factors.z + product(d_a, common, self.compute)), d_h

    def collect(
        self,
        params: GRUParams,
        xs: Array,
        entering: GRUCarry,
        leaving: GRUCarry,
        factors: GRUFactors,
        emitted: Array,
    ) -> tuple[GRUParams, Array]:
        H = emitted.shape[-1]
        at_h = jnp.concatenate([emitted, emitted, emitted], axis=-1) * factors.gates
        at_x = jnp.concatenate([at_h[..., : 2 * H], emitted * factors.n], axis=-1)
        w_x, b = outer_and_sum(xs, at_x, self.compute)
        w_h, at_h_sum = outer_and_sum(entering.h, at_h, self.compute)
        return GRUParams(w_x, w_h, b, at_h_sum[2 * H :]), product(at_x, params.w_x.T, self.compute)


class GRUResetBeforeParams(NamedTuple):
    """w_x: `[D, 3H]`, b: `[3H]` by gate r, z, n; w_h: `[H, 2H]` by gate r, z; w_n: `[H, H]`."""

    w_x: Float[Array, "D G"]
    w_h: Float[Array, "H RZ"]
    w_n: Float[Array, "H H"]
    b: Float[Array, " G"]


@dataclasses.dataclass(frozen=True)
class GRUResetBefore(GRUBase):
    """The GRU with the reset BEFORE the matrix product, as first published.

        r = sigmoid(x w_xr + h w_hr + b_r)
        z = sigmoid(x w_xz + h w_hz + b_z)                     z = 1 KEEPS the old h
        n = tanh(x w_xn + (r * h) w_n + b_n)
        h' = (1 - z) * n + z * h,    y = h'

    Args (all static): those of `GRU`.

    References: Cho et al., *Learning phrase representations using RNN encoder-decoder*, EMNLP 2014,
    arXiv:1406.1078.
    """

    def init(self, key: PRNGKey) -> GRUResetBeforeParams:
        """Draw parameters; the key is consumed.

        Each gate's `w_h` or `w_n` is orthogonal and its `w_x` Glorot uniform; b = 0, b_z
        unless `longest_lag` is given.
        """
        w_x, w_h, b = self._draw(key, 3)
        return GRUResetBeforeParams(
            w_x, w_h[:, : 2 * self.hidden_dim], w_h[:, 2 * self.hidden_dim :], b
        )

    def recur(
        self, params: GRUResetBeforeParams, carry: GRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        x_rz, x_n = z[..., : 2 * self.hidden_dim], z[..., 2 * self.hidden_dim :]
        reset, keep = jnp.split(
            sigmoid(x_rz + product(carry.h, params.w_h, self.compute_dtype)), 2, axis=-1
        )
        n = jnp.tanh(x_n + product(reset * carry.h, params.w_n, self.compute_dtype))
        h = (1 - keep) * n + keep * carry.h
        return GRUCarry(h), h


@dataclasses.dataclass(frozen=True)
class LocalGRU(GRU):
    """A GRU whose gates treat the last output as a constant; its values are those of `GRU`.

        r, z, n from stop_gradient(h),    h' = (1 - z) * n + z * h,    so that dh'/dh = diag(z)

    See `LocalLSTM`. The arguments are those of `GRU`.
    """

    backprop = None  # type: ignore[assignment]  # that of GRU differentiates another step

    def recur(
        self, params: GRUParams, carry: GRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        x_r, x_z, x_n = jnp.split(z, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(
            product(jax.lax.stop_gradient(carry.h), params.w_h, self.compute_dtype), 3, axis=-1
        )
        keep = sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + sigmoid(x_r + h_r) * (h_n + params.b_n))
        h = (1 - keep) * n + keep * carry.h
        return GRUCarry(h), h
