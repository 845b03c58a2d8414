"""Measure the gradient of a loss by the carry of every earlier step.

Many losses are back-propagated together, with cotangents scaled by powers of two.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from tbptt.diagnostics._recurrence import check_carry, check_inputs
from tbptt.numerics import expand, measure, norm_dtype, select, zero_where_masked
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.validate import check_floating
from tbptt.windows import check_positive_int


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
    lags = check_positive_int("lags", lags)
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


class ScaledNorms(NamedTuple):
    """Non-negative numbers `size 2^exponent`, possibly beyond the dtype's range.

    inf and NaN are stored in size.
    """

    size: Float[Array, "*shape"]
    exponent: Int[Array, "*shape"]


class StepInputs(NamedTuple):
    """Inputs of each step: `xs [T, *batch, D]`; resets and mask, `[T, *batch]` booleans or None."""

    xs: Any
    resets: Any
    mask: Any


def scaled_norms(tree: Any, batch_dims: int, exponent: Int[Array, "*batch"]) -> ScaledNorms:
    """Compute the norm of `tree 2^exponent` over all leaves and all but `batch_dims` axes."""
    measured = measure(tree, batch_dims)
    return ScaledNorms(measured.size, measured.exponent + exponent)


def to_floats(norms: ScaledNorms) -> Array:
    """Return the numbers as floats: inf or 0 exactly where they leave the dtype's range."""
    return jnp.ldexp(norms.size, norms.exponent)


def mean(norms: ScaledNorms, axes: tuple[int, ...]) -> Array:
    """Average over axes; inf only where the mean itself is beyond the range."""
    top = jnp.max(norms.exponent, axis=axes, keepdims=True)
    scaled = jnp.mean(jnp.ldexp(norms.size, norms.exponent - top), axis=axes)
    return jnp.ldexp(scaled, jnp.squeeze(top, axis=axes))


def quantiles(norms: ScaledNorms, levels: Array, axes: tuple[int, ...]) -> Array:
    """Compute quantiles, levels first; inf where it is between numbers of which one is inf."""
    measured = to_floats(norms)
    lower, upper, between = (
        jnp.quantile(measured, levels, axis=axes, method=m) for m in ("lower", "higher", "linear")
    )
    return jnp.where(lower == upper, lower, between)  # interpolating inf and inf would give NaN


def backprop_lags(
    cell: Cell,
    params: Params,
    carry: Carry,
    steps: StepInputs,
    loss: Callable[[Any, Array], Array],
    name: str,
    at: np.ndarray,
    lags: int,
    summarise: Callable[[Carry, int, Array], Any],
) -> Any:
    """Back-propagate the losses of the steps `at` through `lags` steps, all S of them together.

        g_1 = d loss(y_s, s) / d carry_{s-1},    g_{k+1} = g_k d carry_{s-k} / d carry_{s-k-1}

    The g of each batch element is stored as `g 2^e`, with e = 0 while its largest entry is in the
    middle half of the dtype's exponents. No intermediate is therefore inf or 0 unless its norm
    is.

    Args:
      loss: `(y, s) -> scalar`.
      name: name of the loss in error messages.
      at: static, `[S]`.
      lags: static, number of steps.
      summarise: `(g, 1 + number of batch axes, e [S, *batch]) -> norms [S, *batch]`, the result
        to store for every lag.

    Returns:
      the results of `summarise`, with the lags as second axis: leaves `[S, lags, *batch]`.

    Raises:
      TypeError: a leaf of the carry is not floating.
      ValueError: a shape does not fit; loss does not return a scalar.
    """
    steps = _checked(cell, carry, steps)
    batch_dims, step = steps.xs.ndim - 2, _step(cell, params, steps.xs.shape[1:-1])

    def loss_by_carry(carry: Carry, s: Array) -> Array:
        value = loss(step(carry, _at(steps, s))[1], s)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                f"{name} must return a floating scalar; got "
                f"{jnp.result_type(value)}{list(jnp.shape(value))}"
            )
        return value

    def back(cotangent: Carry, t: Array) -> Carry:
        _, pull = jax.vjp(lambda c: step(c, _at(steps, t))[0], _at(entering, t))
        return pull(cotangent)[0]

    def body(state: tuple[Carry, Array], k: Array) -> tuple[tuple[Carry, Array], Any]:
        cotangents, exponent = state
        state = _rescaled(jax.vmap(back)(cotangents, losses - k), exponent, 1 + batch_dims)
        return state, summarise(state[0], 1 + batch_dims, state[1])

    losses = jnp.asarray(at)
    _, entering = jax.lax.scan(lambda c, now: (step(c, now)[0], c), carry, steps)
    first = jax.vmap(lambda s: jax.grad(loss_by_carry)(_at(entering, s), s))(losses)
    none = jnp.zeros((len(at), *steps.xs.shape[1:-1]), jnp.int32)
    state = _rescaled(first, none, 1 + batch_dims)
    _, rest = jax.lax.scan(body, state, jnp.arange(1, lags))
    newest = summarise(state[0], 1 + batch_dims, state[1])
    return jax.tree.map(
        lambda a, b: jnp.moveaxis(jnp.concatenate([a[None], b]), 0, 1), newest, rest
    )


def _step(
    cell: Cell, params: Params, batch_shape: tuple[int, ...]
) -> Callable[[Carry, StepInputs], tuple[Carry, Any]]:
    """Return one step with its reset and its mask, as in `unroll`."""
    initial = cell.initial_carry(batch_shape)

    def step(carry: Carry, now: StepInputs) -> tuple[Carry, Any]:
        entering = carry if now.resets is None else select(now.resets, initial, carry)
        new, y = cell(params, entering, now.xs)
        if now.mask is None:
            return new, y
        return select(now.mask, new, carry), select(now.mask, y, jax.tree.map(jnp.zeros_like, y))

    return step


def _rescaled(tree: Carry, exponent: Array, batch_dims: int) -> tuple[Carry, Array]:
    """Return (t, e) with t 2^e = tree 2^exponent.

    The largest entry of t is in the middle half of the exponents if possible. e is 0 wherever the
    numbers themselves are there: those are computed as without scaling (also by a cell whose
    backward pass is not linear, such as ClippedCell, if its bound is in that range).
    """
    wide = norm_dtype(tree)
    over = [tuple(range(batch_dims, leaf.ndim)) for leaf in jax.tree.leaves(tree)]
    largest = jnp.zeros(exponent.shape, wide)
    for leaf, axes in zip(jax.tree.leaves(tree), over, strict=True):
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf).astype(wide), axis=axes, initial=0))
    usable = jnp.isfinite(largest) & (largest > 0)
    true = jnp.frexp(jnp.where(usable, largest, 1))[1] + exponent
    infos = [jnp.finfo(leaf.dtype) for leaf in jax.tree.leaves(tree)]
    low, high = max(int(i.minexp) for i in infos) // 2, min(int(i.maxexp) for i in infos) // 2
    most = -int(jnp.finfo(wide).minexp)  # range of the factor; the next step shifts the rest
    wanted = exponent - (true - jnp.clip(true, low, high))
    shift = jnp.where(usable, jnp.clip(wanted, -most, most), 0)
    factor = jnp.ldexp(jnp.ones((), wide), shift)
    scaled = jax.tree.map(
        lambda leaf: (leaf.astype(wide) * expand(factor, leaf)).astype(leaf.dtype), tree
    )
    return scaled, exponent - shift


def _checked(cell: Cell, carry: Carry, steps: StepInputs) -> StepInputs:
    check_floating(carry)
    xs = check_inputs(cell, steps.xs)
    check_carry(cell, carry, xs.shape[1:-1])
    flags = {
        name: None if flag is None else jnp.asarray(flag)
        for name, flag in (("resets", steps.resets), ("mask", steps.mask))
    }
    for name, flag in flags.items():
        if flag is not None and (flag.shape != xs.shape[:-1] or flag.dtype != jnp.bool_):
            raise ValueError(
                f"{name} must be booleans [T, *batch] = {xs.shape[:-1]}; got "
                f"{flag.dtype}{list(flag.shape)}"
            )
    return StepInputs(zero_where_masked(xs, flags["mask"]), **flags)


def _at(tree: Any, t: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[t], tree)
