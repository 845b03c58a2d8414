"""The simple recurrent network: `h = activation(h W + x U + b)`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tbptt.cells import initializers
from tbptt.cells.matmul import outer_and_sum, product, project_inputs
from tbptt.types import PRNGKey


class ElmanParams(NamedTuple):
    """w_h: `[H, H]` (W in the equation), w_x: `[D, H]` (U), b: `[H]`."""

    w_h: Float[Array, "H H"]
    w_x: Float[Array, "D H"]
    b: Float[Array, " H"]


class ElmanCarry(NamedTuple):
    """h: `[*batch, H]`."""

    h: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class Elman:
    """The simple recurrent network of Elman (1990).

        h_t = activation(h_{t-1} w_h + x_t w_x + b),    y_t = h_t

    Args (all static):
      input_dim: D, the size of `x`.
      hidden_dim: H, the size of `h` and `y`.
      activation: an elementwise function, `jnp.tanh` by default. Pass a named function, because
        cells hash by it; `jnp.positive` gives the linear network.
      recurrent_init: the initializer of `w_h`: `initializers.orthogonal` or
        `initializers.identity`.
      gain: the factor that multiplies the initial `w_h`; for an orthogonal `w_h` it is every
        singular value.
      dtype: the dtype of params and carry; None for JAX's default float.
      compute_dtype: the dtype of the operands of matrix products, for example `jnp.bfloat16`; sums
        and the carry keep `dtype`. None for `dtype`.

    Returns:
      A cell: `init(key) -> ElmanParams` with `w_h [H, H]`, `w_x [D, H]`, `b [H]`;
      `initial_carry(batch_shape) -> ElmanCarry` with `h [*batch_shape, H]`; and
      `cell(params, carry, x) -> (carry, y)` with `x [*batch, D]` and `y [*batch, H]`.

    Raises:
      ValueError: a size is not a Python int of at least 1.

    References: Elman, *Finding structure in time*, Cognitive Science 14, 1990. Identity
    initialisation with relu: Le, Jaitly and Hinton 2015, arXiv:1504.00941.
    """

    input_dim: int
    hidden_dim: int
    activation: Callable[[Array], Array] = jnp.tanh
    recurrent_init: initializers.Initializer = initializers.orthogonal
    gain: float = 1.0
    dtype: DTypeLike | None = None
    compute_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        initializers.check_sizes(self)

    def init(self, key: PRNGKey) -> ElmanParams:
        """Draw parameters; the key is consumed.

        `w_h` is `gain` times a draw of `recurrent_init`, `w_x` is Glorot uniform, and `b` is 0.
        """
        dtype = initializers.float_dtype(self.dtype)
        key_h, key_x = jax.random.split(key)
        return ElmanParams(
            w_h=self.gain * self.recurrent_init(key_h, (self.hidden_dim, self.hidden_dim), dtype),
            w_x=initializers.glorot_uniform(key_x, (self.input_dim, self.hidden_dim), dtype),
            b=jnp.zeros((self.hidden_dim,), dtype),
        )

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> ElmanCarry:
        """Return h = 0 of shape `[*batch_shape, H]`."""
        return ElmanCarry(
            jnp.zeros((*batch_shape, self.hidden_dim), initializers.float_dtype(self.dtype))
        )

    def inputs(
        self, params: ElmanParams, xs: Float[Array, "*time_batch D"]
    ) -> Float[Array, "*time_batch H"]:
        """Compute `x w_x + b` for any number of steps."""
        return project_inputs(xs, params.w_x, params.b, self.compute_dtype)

    def recur(
        self, params: ElmanParams, carry: ElmanCarry, z: Float[Array, "*batch H"]
    ) -> tuple[ElmanCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        h = self.activation(product(carry.h, params.w_h, self.compute_dtype) + z)
        return ElmanCarry(h), h

    def __call__(
        self, params: ElmanParams, carry: ElmanCarry, x: Float[Array, "*batch D"]
    ) -> tuple[ElmanCarry, Float[Array, "*batch H"]]:
        """Take one step; return `(carry, y)` with `y = h`."""
        return self.recur(params, carry, self.inputs(params, x))

    @property
    def backprop(self) -> "ElmanVJP":
        """The hand-written forward and backward pass, which `unroll` uses."""
        return ElmanVJP(self.activation, self.compute_dtype)


class ElmanWeights(NamedTuple):
    """The parameters, and `back`: `[H, H]`, the transpose of `w_h`."""

    params: ElmanParams
    back: Float[Array, "H H"]


@dataclasses.dataclass(frozen=True)
class ElmanVJP:
    """The forward and backward pass of `Elman`: a `CellVJP`.

    a = h w_h + x w_x + b;  slope = activation'(a)        [saved, except for tanh: 1 - h'^2]
    da = (d_h' + d_y) * slope;  d_h = da w_h^T
    """

    activation: Callable[[Array], Array]
    compute: DTypeLike | None

    def prepare(self, params: ElmanParams) -> ElmanWeights:
        return ElmanWeights(params, params.w_h.T)

    def inputs(self, weights: ElmanWeights, xs: Array) -> Array:
        return project_inputs(xs, weights.params.w_x, weights.params.b, self.compute)

    def forward(
        self, weights: ElmanWeights, carry: ElmanCarry, z: Array
    ) -> tuple[ElmanCarry, Array, Any]:
        a = product(carry.h, weights.params.w_h, self.compute) + z
        if self.activation is jnp.tanh:
            h = jnp.tanh(a)
            return ElmanCarry(h), h, ()
        h, slope = jax.jvp(self.activation, (a,), (jnp.ones_like(a),))
        return ElmanCarry(h), h, slope

    def linearize(
        self,
        weights: ElmanWeights,
        xs: Array,
        entering: ElmanCarry,
        leaving: ElmanCarry,
        saved: Any,
    ) -> tuple[Array, Array]:
        if self.activation is jnp.tanh:
            return weights.back, 1 - leaving.h * leaving.h
        slope = (
            self.forward(weights, entering, self.inputs(weights, xs))[2] if saved is None else saved
        )
        return weights.back, slope

    def backward(
        self, common: Array, factors: Array, d_leaving: ElmanCarry, d_y: Array
    ) -> tuple[ElmanCarry, Array]:
        d_a = (d_leaving.h + d_y) * factors
        return ElmanCarry(product(d_a, common, self.compute)), d_a

    def collect(
        self,
        params: ElmanParams,
        xs: Array,
        entering: ElmanCarry,
        leaving: ElmanCarry,
        factors: Array | None,
        emitted: Array,
    ) -> tuple[ElmanParams, Array]:
        w, b = outer_and_sum(jnp.concatenate([xs, entering.h], axis=-1), emitted, self.compute)
        w_x, w_h = w[: xs.shape[-1]], w[xs.shape[-1] :]
        return ElmanParams(w_h, w_x, b), product(emitted, params.w_x.T, self.compute)
