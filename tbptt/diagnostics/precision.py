"""Find the step at which finite precision makes powers overflow, underflow, or have no effect."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from tbptt.diagnostics._recurrence import check_carry, check_inputs
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.validate import check_floating


class Powers(NamedTuple):
    """First step n at which h_n = w h_{n-1}, h_0 = 1, leaves each range.

    Fields are Python ints; None = not within max_steps.

    overflow:  h_n is not finite
    subnormal: |h_n| is below the dtype's smallest normal number, where digits are lost
    zero:      h_n is 0
    stuck:     h_n = h_{n-1}, though |w| is not 1: rounding cancels the multiplication
    """

    overflow: int | None
    subnormal: int | None
    zero: int | None
    stuck: int | None


class GradientRange(NamedTuple):
    """Range of lags at which gradients are useful in one dtype.

    Lags are Python ints; None = not within T.

    largest:     `[T]` NumPy float64, max |d L_s / d carry_{s-k}| over entries and batch, lag
                 k = 1 first
    overflow:    the first lag at which it is not finite
    zero:        the first lag at which it is 0
    last_useful: the last lag up to which `rate` times it still changes a parameter of size
                 `parameter`
    """

    largest: np.ndarray
    overflow: int | None
    zero: int | None
    last_useful: int | None


def powers(w: float, dtype: DTypeLike, max_steps: int) -> Powers:
    """Iterate h' = w h from h = 1 in the dtype, on JAX's default device, until it ends.

    The result depends on the device. XLA on a CPU flushes float32 and float64 subnormals to 0, so
    0.99^n becomes 0 where it leaves the normal numbers. With subnormals (float16) it never
    reaches 0 but stays at a small multiple of the smallest one. Not for use inside jit: it
    returns Python ints.

    Args:
      w: rounded to the dtype first.
      dtype: float16, bfloat16, float32, float64 (with or without jax_enable_x64).
      max_steps: maximum number of steps.

    Raises:
      TypeError: dtype is not a floating dtype.
      ValueError: w is not finite in it, or max_steps < 1.
    """
    with jax.enable_x64(True):
        dtype, scale = _check(w, dtype, max_steps)
        before, h, n, subnormal = (leaf.item() for leaf in _iterate(scale, max_steps))
    return Powers(
        overflow=None if np.isfinite(h) else n,
        subnormal=subnormal if subnormal > 0 else None,
        zero=n if h == 0 else None,
        stuck=n if h == before and h != 0 and abs(w) != 1 else None,
    )


@jax.jit
def _iterate(scale: Array, max_steps: ArrayLike) -> tuple[Array, ...]:
    """Return `(h before the last step, h, number of steps, first subnormal step or -1)`."""
    dtype = scale.dtype
    tiny = jnp.asarray(jnp.finfo(dtype).tiny, dtype)

    def unfinished(state: tuple[Array, ...]) -> Array:
        before, h, n, _ = state
        return jnp.isfinite(h) & (h != 0) & (h != before) & (n < max_steps)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        _, h, n, subnormal = state
        new, n = h * scale, n + 1
        return h, new, n, jnp.where((subnormal < 0) & (jnp.abs(new) < tiny), n, subnormal)

    start = (jnp.asarray(jnp.nan, dtype), jnp.ones((), dtype), jnp.zeros((), int), jnp.asarray(-1))
    return jax.lax.while_loop(unfinished, step, start)


def overflow_step(w: float, dtype: DTypeLike, max_steps: int = 100_000) -> int | None:
    """Return the first n at which the iterated product w^n is not finite; None beyond max_steps."""
    return powers(w, dtype, max_steps).overflow


def underflow_step(w: float, dtype: DTypeLike, max_steps: int = 100_000) -> int | None:
    """Return the first n at which the iterated product w^n is 0; None beyond max_steps.

    See `powers`.
    """
    return powers(w, dtype, max_steps).zero


def last_useful_lag(
    w: float,
    dtype: DTypeLike,
    max_steps: int = 100_000,
    *,
    parameter: float = 1.0,
    rate: float = 1.0,
) -> int | None:
    """Find the last lag whose gradient w^k still changes a parameter in the dtype.

        parameter - rate * w^k != parameter

    which is false once the update is below half an ulp, or not finite.

    For |w| < 1 about log(ulp / 2 / rate) / log |w|, far fewer steps than until w^k is 0: 0.99^k no
    longer changes a float32 parameter of 1.5 after 1655 steps, and is 0 only after 8690 (where
    subnormals are flushed).

    Returns:
      the last k >= 0 with every lag up to it useful; -1 if not even lag 0 is; None if all
      max_steps are.

    Raises:
      as `powers`.
    """
    with jax.enable_x64(True):
        dtype, scale = _check(w, dtype, max_steps)
        size, lr = _rounded(parameter, dtype), _rounded(rate, dtype)
        first_useless = int(_first_useless(scale, size, lr, max_steps))
    return None if first_useless > max_steps else first_useless - 1


@jax.jit
def _first_useless(scale: Array, size: Array, lr: Array, max_steps: ArrayLike) -> Array:
    """Return the first lag whose power no longer changes a parameter of this size."""

    def unfinished(state: tuple[Array, ...]) -> Array:
        g, k = state
        return _changes(size, lr, g) & (k <= max_steps)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        return state[0] * scale, state[1] + 1

    start = (jnp.ones((), scale.dtype), jnp.zeros((), int))
    return jax.lax.while_loop(unfinished, step, start)[1]


def gradient_range(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[Array, "T *batch D"],
    last_loss: Callable[[Any], Float[Array, ""]],
    dtype: DTypeLike,
    *,
    parameter: float = 1.0,
    rate: float = 1.0,
) -> GradientRange:
    """Find the lags at which a cell's gradient in a dtype overflows, is 0, or has no effect.

        g_k = d L_s / d carry_{s-k},    s = T - 1,    k = 1 .. T

    with params, carry and xs cast to the dtype first. Not for use inside jit: it returns Python
    ints.

    Args:
      cell: static; it must compute in the dtype of its arguments, as the cells of this library
        do.
      params, carry, xs: floating leaves of any dtype; xs `[T, *batch, D]`.
      last_loss: static; the loss of the last output, `y [*batch, H] -> scalar`.
      dtype: float16, bfloat16, float32, float64.
      parameter, rate: the size and the learning rate that decide whether an update is lost, as in
        `last_useful_lag`.

    Raises:
      TypeError: dtype is not a floating dtype, or a leaf of carry is not floating.
      ValueError: xs is not `[T, *batch, D]` with T >= 1, or the carry has other batch axes.
    """
    with jax.enable_x64(True):
        dtype, _ = _check(0.0, dtype, 1)
        check_floating(carry)
        xs = check_inputs(cell, xs)
        check_carry(cell, carry, xs.shape[1:-1])
        params, carry, xs = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, carry, xs))

        def loss(offsets: Carry) -> Array:
            def body(carry: Carry, x_and_offset: Any) -> tuple[Carry, Any]:
                x, offset = x_and_offset
                return cell(params, jax.tree.map(jnp.add, carry, offset), x)

            return last_loss(
                jax.tree.map(lambda leaf: leaf[-1], jax.lax.scan(body, carry, (xs, offsets))[1])
            )

        zeros = jax.tree.map(lambda leaf: jnp.zeros((len(xs), *leaf.shape), dtype), carry)
        leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(zeros))
        flat = jnp.concatenate([leaf.reshape(len(xs), -1) for leaf in leaves], axis=1)
        largest = jnp.max(jnp.abs(flat), axis=1)[::-1]  # NaN if any entry is
        changes = _changes(_rounded(parameter, dtype), _rounded(rate, dtype), largest)
        seen = np.asarray(largest, np.float64)
        useless = _first(~np.asarray(changes))
    return GradientRange(
        seen,
        _first(~np.isfinite(seen)),
        _first(seen == 0),
        None if useless is None else useless - 1,
    )


def _changes(parameter: Array, rate: Array, gradient: Array) -> Array:
    new = parameter - rate * gradient
    return jnp.isfinite(new) & (new != parameter)


def _first(flags: np.ndarray) -> int | None:
    return int(np.argmax(flags)) + 1 if np.any(flags) else None


def _check(w: float, dtype: DTypeLike, max_steps: int) -> tuple[Any, Array]:
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(
            f"dtype must be floating: float16, bfloat16, float32 or float64; got {jnp.dtype(dtype)}"
        )
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1; got {max_steps}")
    scale = _rounded(w, dtype)
    if not bool(jnp.isfinite(scale)):
        raise ValueError(f"w must be finite in {jnp.dtype(dtype)}; got {w}")
    return jnp.dtype(dtype), scale


def _rounded(number: float, dtype: DTypeLike) -> Array:
    return jnp.asarray(number, jnp.float64).astype(dtype)
