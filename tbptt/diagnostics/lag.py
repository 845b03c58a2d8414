"""Measure the gradient of a loss by the carry of every earlier step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.diagnostics._backprop_lags import (
    ScaledNorms,
    StepInputs,
    backprop_lags,
    mean,
    quantiles,
    scaled_norms,
    to_floats,
)
from tbptt.types import Carry, Cell, Params
from tbptt.windows import check_window


class LagProfile(NamedTuple):
    """Gradient norms by lag, lag 1 first.

    The first two and `norms` are pytrees like the carry, one leaf per field of a layer.

    mean:      leaves `[lags]`, over losses and batch
    quantiles: leaves `[levels, lags]`, likewise
    levels:    `[levels]`, the quantile levels
    norms:     leaves `[S, lags, *batch]`, the measured norms of S losses
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
    """Compute the norm of the gradient of the last step's loss by every earlier carry.

        norms[k - 1] = || d L_s / d carry_{s-k} ||,    s = T - 1,    k = 1 .. T

    where carry_t leaves step t (carry_{-1} is `carry`), with all its fields as one vector for
    each batch element. One reverse pass. The slope over k shows exploding or vanishing gradients;
    TBPTT(k1, k2) ignores the lags k >= k2.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves `[*batch, ...]`.
      xs: `[T, *batch, D]`.
      last_loss: static; the loss of the last step as a function of the cell's output,
        `y [*batch, H] -> scalar`, summed over the batch (include the readout, as in
        `lag_profile`).

    Returns:
      norms `[T, *batch]`, lag 1 first, at least float32. Zero where the loss does not depend on
      the carry; inf or 0 where the norm is beyond the dtype's range.

    Raises:
      TypeError: a leaf of the carry is not floating.
      ValueError: xs is not `[T, *batch, D]` with T >= 1, or the carry has other batch axes;
        last_loss does not return a scalar.
    """
    T = np.shape(xs)[0] if np.ndim(xs) else 0
    steps, at = StepInputs(xs, None, None), np.asarray([T - 1])
    measured = backprop_lags(
        cell, params, carry, steps, lambda y, s: last_loss(y), "last_loss", at, T, scaled_norms
    )
    return to_floats(measured)[0]


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
    """Compute the gradient norms of many steps' losses at every lag, per field of the carry.

        norms.f[i, k - 1] = || d L_s / d f_{s-k} ||,    s = at[i],    k = 1 .. lags

    where f_t is a field of the carry that leaves step t. One forward pass stores the carries.
    Then one reverse scan of `lags` steps propagates all S losses together, each step a vmapped
    vjp of the cell. The cost is T cell calls and S * lags vjps, the memory T carries and S
    cotangents, without residuals. Works inside jit.

    Cotangents are kept in range by powers of two. A norm, or a mean of norms, is inf or 0 only
    where it is itself beyond the dtype's range (at least float32's). NaN arises only from
    non-finite params, carry, xs, or gradients of a loss by its y.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves `[*batch, ...]`.
      xs: `[T, *batch, D]`.
      step_losses: static; `(y [*batch, H], s) -> scalar`, the loss of step s as a function of the
        cell's output y, summed over the batch (not a `LossFn`, which sums over steps). s is a
        traced integer. Include the readout:
        `lambda y, s: jnp.sum(squared_error(readout.apply(params.readout, y), targets[s]))`.
        A loss that ignores y gives zeros.
      lags: static, 1 .. T.
      at: static; the steps of the losses, each lags - 1 .. T - 1. None = all of these.
      resets: `[T, *batch]`; the gradient by carries before a reset is 0, and counts as 0 in mean
        and quantiles.
      mask: `[T, *batch]`, as in `unroll`. A masked step holds the carry (and counts as a lag);
        its own loss has y = 0, and a gradient of 0, which counts.
      levels: static; quantile levels, each in [0, 1].

    Returns:
      a LagProfile.

    Raises:
      TypeError: a leaf of the carry is not floating; lags is not an int.
      ValueError: lags > T; a step in `at` has fewer than `lags` earlier steps; a level outside
        [0, 1]; carry, xs, resets or mask of the wrong shape; step_losses does not return a
        scalar.
    """
    T = jnp.shape(xs)[0] if jnp.ndim(xs) else 0
    lags = check_window("lags", lags)
    if lags > T:
        raise ValueError(f"lags must be at most T, the number of steps; got lags={lags}, T={T}")
    steps = np.arange(lags - 1, T) if at is None else np.asarray(at)
    if steps.ndim != 1 or steps.size == 0 or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"at must be a non-empty sequence of steps (static ints); got {at!r}")
    if steps.min() < lags - 1 or steps.max() >= T:
        raise ValueError(
            f"at must hold steps from lags - 1 = {lags - 1} (a loss needs {lags} earlier carries) "
            f"to T - 1 = {T - 1}; got {steps.min()} .. {steps.max()}"
        )
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"levels must be quantiles between 0 and 1, at least one; got {levels}")
    measured = backprop_lags(
        cell,
        params,
        carry,
        StepInputs(xs, resets, mask),
        step_losses,
        "step_losses",
        steps,
        lags,
        _each_field,
    )
    others = tuple(
        axis for axis in range(np.ndim(xs)) if axis != 1
    )  # measured is [S, lags, *batch]

    def summary(of: Callable[[ScaledNorms], Array]) -> Any:
        return jax.tree.map(of, measured, is_leaf=lambda node: isinstance(node, ScaledNorms))

    return LagProfile(
        mean=summary(lambda norms: mean(norms, others)),
        quantiles=summary(
            lambda norms: quantiles(norms, jnp.asarray(levels, norms.size.dtype), others)
        ),
        levels=jnp.asarray(levels, jax.tree.leaves(measured)[0].dtype),
        norms=summary(to_floats),
    )


def _each_field(cotangents: Carry, batch_dims: int, exponent: Array) -> Any:
    return jax.tree.map(lambda leaf: scaled_norms(leaf, batch_dims, exponent), cotangents)
