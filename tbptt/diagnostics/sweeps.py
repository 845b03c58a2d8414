"""Reverse sweeps of many losses at once, their cotangents kept in range by powers of two, and the sizes that they have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tbptt.diagnostics.carries import check_carry, check_inputs
from tbptt.numerics import expand, measure, norm_dtype
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.validate import check_floating


class Sizes(NamedTuple):
    """Non-negative numbers `size 2^exponent` that may lie beyond the dtype's range; inf and NaN stay in size."""

    size: Float[Array, "*shape"]
    exponent: Int[Array, "*shape"]


class Steps(NamedTuple):
    """What enters each step: `xs [T, *batch, D]`; resets and mask `[T, *batch]` booleans or None."""

    xs: Any
    resets: Any
    mask: Any


def sizes_of(tree: Any, batch_dims: int, exponent: Int[Array, "*batch"]) -> Sizes:
    """Measures the norm of `tree 2^exponent` over all but the first `batch_dims` axes of all leaves together."""
    seen = measure(tree, batch_dims)
    return Sizes(seen.size, seen.exponent + exponent)


def values(sizes: Sizes) -> Array:
    """Returns the numbers themselves: inf or 0 exactly where they leave the dtype's range."""
    return jnp.ldexp(sizes.size, sizes.exponent)


def mean(sizes: Sizes, axes: tuple[int, ...]) -> Array:
    """Averages over axes; inf only where the mean itself is beyond the range, not where a number or the sum is."""
    top = jnp.max(sizes.exponent, axis=axes, keepdims=True)
    scaled = jnp.mean(jnp.ldexp(sizes.size, sizes.exponent - top), axis=axes)
    return jnp.ldexp(scaled, jnp.squeeze(top, axis=axes))


def quantiles(sizes: Sizes, levels: Array, axes: tuple[int, ...]) -> Array:
    """Computes quantiles, levels first; inf where the number, or one of the two that it lies between, is inf."""
    seen = values(sizes)
    lower, upper, between = (jnp.quantile(seen, levels, axis=axes, method=m) for m in ("lower", "higher", "linear"))
    return jnp.where(lower == upper, lower, between)  # the way between inf and inf would be NaN


def sweep(
    cell: Cell,
    params: Params,
    carry: Carry,
    steps: Steps,
    loss: Callable[[Any, Array], Array],
    name: str,
    at: np.ndarray,
    lags: int,
    look: Callable[[Carry, int, Array], Any],
) -> Any:
    """Takes the losses of the steps `at` back through `lags` steps, all S of them together.

        g_1 = d loss(y_s, s) / d carry_{s-1},    g_{k+1} = g_k d carry_{s-k} / d carry_{s-k-1}

    Each batch element's g is kept as `g 2^e`, e = 0 while its largest entry is in the middle half of the dtype's
    exponents, so that nothing on the way is inf or 0 whose norm is not.

    Args:
      loss: `(y, s) -> scalar`; `name` is how errors call it.
      at: static, `[S]`.
      look: `(g, 1 + number of batch axes, e [S, *batch]) -> sizes [S, *batch]`, what to keep of every lag.

    Returns:
      what `look` gives, with the lags as second axis: leaves `[S, lags, *batch]`.

    Raises:
      TypeError: a leaf of the carry is not floating. ValueError: a shape does not fit; loss returns no scalar.
    """
    steps = _checked(cell, carry, steps)
    batch_dims, step = steps.xs.ndim - 2, _step(cell, params, steps.xs.shape[1:-1])

    def loss_by_carry(carry: Carry, s: Array) -> Array:
        value = loss(step(carry, _at(steps, s))[1], s)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"{name} must return a floating scalar; got {jnp.result_type(value)}{list(jnp.shape(value))}")
        return value

    def back(cotangent: Carry, t: Array) -> Carry:
        _, pull = jax.vjp(lambda c: step(c, _at(steps, t))[0], _at(entering, t))
        return pull(cotangent)[0]

    def body(state: tuple[Carry, Array], k: Array) -> tuple[tuple[Carry, Array], Any]:
        cotangents, exponent = state
        state = _rescaled(jax.vmap(back)(cotangents, losses - k), exponent, 1 + batch_dims)
        return state, look(state[0], 1 + batch_dims, state[1])

    losses = jnp.asarray(at)
    _, entering = jax.lax.scan(lambda c, now: (step(c, now)[0], c), carry, steps)
    first = jax.vmap(lambda s: jax.grad(loss_by_carry)(_at(entering, s), s))(losses)
    none = jnp.zeros((len(at), *steps.xs.shape[1:-1]), jnp.int32)
    state = _rescaled(first, none, 1 + batch_dims)
    _, rest = jax.lax.scan(body, state, jnp.arange(1, lags))
    newest = look(state[0], 1 + batch_dims, state[1])
    return jax.tree.map(lambda a, b: jnp.moveaxis(jnp.concatenate([a[None], b]), 0, 1), newest, rest)


def _step(cell: Cell, params: Params, batch_shape: tuple[int, ...]) -> Callable[[Carry, Steps], tuple[Carry, Any]]:
    """One step with its reset and its mask, as `unroll` takes it."""
    initial = cell.initial_carry(batch_shape)

    def step(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        entering = carry if now.resets is None else _where(now.resets, initial, carry)
        new, y = cell(params, entering, now.xs)
        if now.mask is None:
            return new, y
        return _where(now.mask, new, carry), _where(now.mask, y, jax.tree.map(jnp.zeros_like, y))

    return step


def _rescaled(tree: Carry, exponent: Array, batch_dims: int) -> tuple[Carry, Array]:
    """(t, e) with t 2^e = tree 2^exponent, and t's largest entry in the middle half of the exponents if it can be.

    e is 0 wherever the numbers themselves are there: those are computed as without any scaling (also by a cell whose
    backward pass is not linear, such as ClippedCell, as long as its bound is there too)."""
    wide = norm_dtype(tree)
    over = [tuple(range(batch_dims, leaf.ndim)) for leaf in jax.tree.leaves(tree)]
    largest = jnp.zeros(exponent.shape, wide)
    for leaf, axes in zip(jax.tree.leaves(tree), over, strict=True):
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf).astype(wide), axis=axes, initial=0))
    usable = jnp.isfinite(largest) & (largest > 0)
    true = jnp.frexp(jnp.where(usable, largest, 1))[1] + exponent
    infos = [jnp.finfo(leaf.dtype) for leaf in jax.tree.leaves(tree)]
    low, high = max(int(i.minexp) for i in infos) // 2, min(int(i.maxexp) for i in infos) // 2
    most = -int(jnp.finfo(wide).minexp)  # by more than the factor can hold, it moves again in the next step
    wanted = exponent - (true - jnp.clip(true, low, high))
    shift = jnp.where(usable, jnp.clip(wanted, -most, most), 0)
    factor = jnp.ldexp(jnp.ones((), wide), shift)
    scaled = jax.tree.map(lambda leaf: (leaf.astype(wide) * expand(factor, leaf)).astype(leaf.dtype), tree)
    return scaled, exponent - shift


def _checked(cell: Cell, carry: Carry, steps: Steps) -> Steps:
    check_floating(carry)
    xs = check_inputs(cell, steps.xs)
    check_carry(cell, carry, xs.shape[1:-1])
    flags = {name: None if flag is None else jnp.asarray(flag) for name, flag in steps._asdict().items() if name != "xs"}
    for name, flag in flags.items():
        if flag is not None and (flag.shape != xs.shape[:-1] or flag.dtype != jnp.bool_):
            raise ValueError(f"{name} must be booleans [T, *batch] = {xs.shape[:-1]}; got {flag.dtype}{list(flag.shape)}")
    if flags["mask"] is not None:
        xs = jnp.where(flags["mask"][..., None], xs, 0)  # NaN padding would come back as 0 * NaN
    return Steps(xs, **flags)


def _where(flags: Array, chosen: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(expand(flags, b), a, b), chosen, other)


def _at(tree: Any, t: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[t], tree)
