"""How much of a loss's gradient arrives k steps back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.diagnostics.carries import check_floating, safe_norm
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
      last_loss: static; the loss of the last output, `y [*batch, H] -> scalar`, summed over the batch.

    Returns:
      norms `[T, *batch]`, lag 1 first. Zeros where the loss does not depend on the carry.

    Raises:
      TypeError: a leaf of the carry is not floating.
      ValueError: xs is not `[T, *batch, D]` with T >= 1; last_loss does not return a scalar.
    """
    T = jnp.shape(xs)[0] if jnp.ndim(xs) else 0
    at = np.asarray([T - 1])
    norms = _sweeps(cell, params, carry, xs, lambda y, s: last_loss(y), "last_loss", T, at, None)
    return safe_norm(jnp.stack(jax.tree.leaves(norms)), (0,))[0]


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
    levels: tuple[float, ...] = (0.1, 0.5, 0.9),
) -> LagProfile:
    """Measures how large the gradients of many steps' losses are at every lag, for each field of the carry apart.

        norms.f[i, k - 1] = || d L_s / d f_{s-k} ||,    s = at[i],    k = 1 .. lags

    where f_t is a field of the carry that leaves step t. One forward pass keeps the carries; then one reverse scan of
    `lags` steps takes all S losses back together, each step a vmapped vjp of the cell. So the cost is T cell calls and
    S * lags vjps, the memory T carries and S cotangents: no residuals. Norms beyond the dtype's range are inf or 0.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves `[*batch, ...]`.
      xs: `[T, *batch, D]`.
      step_losses: static; `(y [*batch, H], s) -> scalar`, the loss of step s by its output, summed over the batch. s is
        a traced integer: `targets[s]` works. A loss that ignores the carry gives zeros.
      lags: static, 1 .. T.
      at: static; the steps whose losses are followed, each lags - 1 .. T - 1. None = all of these.
      resets: `[T, *batch]`; the gradient by carries before a reset is 0, and counts as 0 in mean and quantiles.
      levels: static; which quantiles, each in [0, 1].

    Returns:
      a LagProfile.

    Raises:
      TypeError: a leaf of the carry is not floating; lags is not an int.
      ValueError: lags > T; a step in `at` has fewer than `lags` steps of past; a level outside [0, 1]; xs or resets of
        the wrong shape; step_losses does not return a scalar.
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
    norms = _sweeps(cell, params, carry, xs, step_losses, "step_losses", lags, steps, resets)
    others = tuple(axis for axis in range(jnp.ndim(xs)) if axis != 1)  # norms are [S, lags, *batch]
    quantile = jnp.asarray(levels, jax.tree.leaves(norms)[0].dtype)
    return LagProfile(
        mean=jax.tree.map(lambda n: jnp.mean(n, axis=others), norms),
        quantiles=jax.tree.map(lambda n: jnp.quantile(n, quantile.astype(n.dtype), axis=others), norms),
        levels=quantile,
        norms=norms,
    )


def _sweeps(
    cell: Cell, params: Params, carry: Carry, xs: Any, loss: Any, name: str, lags: int, at: np.ndarray, resets: Any
) -> Any:
    """Takes the losses of the steps `at` back through `lags` steps; norms like the carry, leaves `[S, lags, *batch]`."""
    check_floating(carry)
    xs = jnp.asarray(xs)
    if xs.ndim < 2 or xs.shape[0] < 1:
        raise ValueError(f"xs must be [T, *batch, D] with at least one step; got shape {xs.shape}")
    resets = None if resets is None else jnp.asarray(resets)
    if resets is not None and (resets.shape != xs.shape[:-1] or resets.dtype != jnp.bool_):
        raise ValueError(f"resets must be booleans [T, *batch] = {xs.shape[:-1]}; got {resets.dtype}{list(resets.shape)}")
    batch_dims, initial = xs.ndim - 2, cell.initial_carry(xs.shape[1:-1])

    def step(carry: Carry, x_and_reset: Any) -> tuple[Carry, Any]:
        x, reset = x_and_reset
        if reset is not None:
            flags = jax.tree.map(lambda leaf: reset.reshape(reset.shape + (1,) * (leaf.ndim - reset.ndim)), carry)
            carry = jax.tree.map(jnp.where, flags, initial, carry)
        return cell(params, carry, x)

    def forward(carry: Carry, now: Any) -> tuple[Carry, Carry]:
        return step(carry, now)[0], carry

    steps, losses = (xs, resets), jnp.asarray(at)
    _, entering = jax.lax.scan(forward, carry, steps)

    def loss_by_carry(carry: Carry, s: Array) -> Array:
        value = loss(step(carry, _at(steps, s))[1], s)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"{name} must return a floating scalar; got {jnp.result_type(value)}{list(jnp.shape(value))}")
        return value

    def back(cotangent: Carry, t: Array) -> Carry:
        _, pull = jax.vjp(lambda c: step(c, _at(steps, t))[0], _at(entering, t))
        return pull(cotangent)[0]

    def norms(cotangents: Carry) -> Carry:
        return jax.tree.map(lambda g: safe_norm(g, tuple(range(1 + batch_dims, g.ndim))), cotangents)

    def body(cotangents: Carry, k: Array) -> tuple[Carry, Carry]:
        cotangents = jax.vmap(back)(cotangents, losses - k)
        return cotangents, norms(cotangents)

    first = jax.vmap(lambda s: jax.grad(loss_by_carry)(_at(entering, s), s))(losses)
    _, rest = jax.lax.scan(body, first, jnp.arange(1, lags))
    return jax.tree.map(lambda a, b: jnp.moveaxis(jnp.concatenate([a[None], b]), 0, 1), norms(first), rest)


def _at(tree: Any, t: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[t], tree)
