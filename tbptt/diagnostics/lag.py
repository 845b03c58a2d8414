"""How much of a loss's gradient arrives k steps back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.diagnostics import sweeps
from tbptt.types import Carry, Cell, Params
from tbptt.windows import check_window


class LagProfile(NamedTuple):
    """Gradient norms by lag; the first three by pytrees like the carry, one leaf a field of a layer. Lag 1 comes first.

    mean:      leaves `[lags]`, over losses and batch
    quantiles: leaves `[levels, lags]`, likewise
    levels:    `[levels]`, which quantiles
    norms:     leaves `[S, lags, *batch]`, what was measured: S losses
    """

    mean: Any
    quantiles: Any
    levels: Float[Array, " levels"]
    norms: Any


def gradient_by_lag(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    last_loss: Callable[[Any], Float[Array, ""]],
) -> Float[Array, "T *batch"]:
    """Measures the norm of the gradient of the last step's loss by every earlier carry, in one reverse sweep.

        norms[k - 1] = || d L_s / d carry_{s-k} ||,    s = T - 1,    k = 1 .. T

    where carry_t leaves step t (carry_{-1} is `carry`), all its fields taken together as one vector for each batch
    element. Its slope over k is what explodes or vanishes; the lags k >= k2 are what TBPTT(k1, k2) leaves out.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves `[*batch, ...]`.
      xs: `[T, *batch, D]`.
      last_loss: static; the loss of the last step by the cell's output, `y [*batch, H] -> scalar`, summed over the batch
        (a readout goes inside, as in `lag_profile`).

    Returns:
      norms `[T, *batch]`, lag 1 first, at least float32. Zeros where the loss does not depend on the carry; inf or 0 where
        the norm is beyond the dtype's range.

    Raises:
      TypeError: a leaf of the carry is not floating.
      ValueError: xs is not `[T, *batch, D]` with T >= 1, or the carry has other batch axes; last_loss returns no scalar.
    """
    T = np.shape(xs)[0] if np.ndim(xs) else 0
    steps, at = sweeps.Steps(xs, None, None), np.asarray([T - 1])
    seen = sweeps.sweep(cell, params, carry, steps, lambda y, s: last_loss(y), "last_loss", at, T, sweeps.sizes_of)
    return sweeps.values(seen)[0]


def lag_profile(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    step_losses: Callable[[Any, Any], Float[Array, ""]],
    *,
    lags: int,
    at: Sequence[int] | np.ndarray | None = None,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    levels: tuple[float, ...] = (0.1, 0.5, 0.9),
) -> LagProfile:
    """Measures how large the gradients of many steps' losses are at every lag, for each field of the carry apart.

        norms.f[i, k - 1] = || d L_s / d f_{s-k} ||,    s = at[i],    k = 1 .. lags

    where f_t is a field of the carry that leaves step t. One forward pass keeps the carries; then one reverse scan of
    `lags` steps takes all S losses back together, each step a vmapped vjp of the cell. So the cost is T cell calls and
    S * lags vjps, the memory T carries and S cotangents: no residuals. Works inside jit.

    Cotangents are kept in range by powers of two: a norm, or a mean of norms, is inf or 0 where it is itself beyond the
    dtype's range (at least float32's), and right again where it comes back. NaN comes only from what is not finite
    already: in params, carry, xs, or the gradient of a loss by its y.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves `[*batch, ...]`.
      xs: `[T, *batch, D]`.
      step_losses: static; `(y [*batch, H], s) -> scalar`, the loss of step s by the cell's output y, summed over the
        batch (a `LossFn`, which sums over steps, will not do). s is a traced integer, and a readout goes inside:
        `lambda y, s: jnp.sum(squared_error(readout.apply(params.readout, y), targets[s]))`. A loss that ignores y
        gives zeros.
      lags: static, 1 .. T.
      at: static; the steps whose losses are followed, each lags - 1 .. T - 1. None = all of these.
      resets: `[T, *batch]`; the gradient by carries before a reset is 0, and counts as 0 in mean and quantiles.
      mask: `[T, *batch]`, as in `unroll`; a step that does not exist holds the carry (its lag counts all the same), and
        its own loss is one of y = 0, whose gradient is 0 and counts as 0.
      levels: static; which quantiles, each in [0, 1].

    Returns:
      a LagProfile.

    Raises:
      TypeError: a leaf of the carry is not floating; lags is not an int.
      ValueError: lags > T; a step in `at` has fewer than `lags` steps of past; a level outside [0, 1]; carry, xs, resets
        or mask of the wrong shape; step_losses does not return a scalar.
    """
    T = jnp.shape(xs)[0] if jnp.ndim(xs) else 0
    lags = check_window("lags", lags)
    if lags > T:
        raise ValueError(f"lags must be at most T, the steps there are; got lags={lags}, T={T}")
    steps = np.arange(lags - 1, T) if at is None else np.asarray(at)
    if steps.ndim != 1 or steps.size == 0 or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"at must be a non-empty list of steps (static ints); got {at!r}")
    if steps.min() < lags - 1 or steps.max() >= T:
        raise ValueError(
            f"at must hold steps from lags - 1 = {lags - 1} (a loss looks back on {lags} steps) to T - 1 = {T - 1}; got "
            f"{steps.min()} .. {steps.max()}"
        )
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"levels must be quantiles between 0 and 1, at least one; got {levels}")
    seen = sweeps.sweep(
        cell, params, carry, sweeps.Steps(xs, resets, mask), step_losses, "step_losses", steps, lags, _each_field
    )
    others = tuple(axis for axis in range(np.ndim(xs)) if axis != 1)  # what was seen is [S, lags, *batch]

    def summary(of: Callable[[sweeps.Sizes], Array]) -> Any:
        return jax.tree.map(of, seen, is_leaf=lambda node: isinstance(node, sweeps.Sizes))

    return LagProfile(
        mean=summary(lambda sizes: sweeps.mean(sizes, others)),
        quantiles=summary(lambda sizes: sweeps.quantiles(sizes, jnp.asarray(levels, sizes.size.dtype), others)),
        levels=jnp.asarray(levels, jax.tree.leaves(seen)[0].dtype),
        norms=summary(sweeps.values),
    )


def _each_field(cotangents: Carry, batch_dims: int, exponent: Array) -> Any:
    return jax.tree.map(lambda leaf: sweeps.sizes_of(leaf, batch_dims, exponent), cotangents)
