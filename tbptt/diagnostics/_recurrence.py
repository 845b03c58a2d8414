"""Validate the input of diagnostics, and express a cell's step as a function of a flat carry."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from tbptt.cells import Stack
from tbptt.cells.wrappers import ClippedCell
from tbptt.numerics import is_floating, measure
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.validate import check_floating


def check_inputs(cell: Cell, xs: Any) -> Array:
    """Return xs as an array; raise a ValueError unless it is `[T, *batch, D]` with T >= 1."""
    xs = jnp.asarray(xs)
    if xs.ndim < 2 or xs.shape[0] < 1:
        raise ValueError(f"xs must be [T, *batch, D] with at least one step; got shape {xs.shape}")
    if xs.shape[-1] != cell.input_dim:
        raise ValueError(
            f"xs must be [T, *batch, D] with D = {type(cell).__name__}.input_dim = "
            f"{cell.input_dim}; got shape {xs.shape}"
        )
    return xs


def check_carry(cell: Cell, carry: Carry, batch_shape: tuple[int, ...]) -> None:
    """Raise a ValueError for the first leaf of a carry with another shape than the initial one."""
    wanted = jax.eval_shape(lambda: cell.initial_carry(batch_shape))
    start = f"cell.initial_carry({batch_shape if batch_shape else ''})"
    if jax.tree.structure(carry) != jax.tree.structure(wanted):
        raise ValueError(
            f"carry must be like {start}, {jax.tree.structure(wanted)}; got "
            f"{jax.tree.structure(carry)}"
        )
    for (path, leaf), want in zip(
        jax.tree_util.tree_leaves_with_path(carry), jax.tree.leaves(wanted), strict=True
    ):
        if jnp.shape(leaf) != want.shape:
            hint = ": one sequence, without batch axes (for a batch, use jax.vmap)"
            raise ValueError(
                f"carry{jax.tree_util.keystr(path)} must have the shape {want.shape} of {start}"
                f"{'' if batch_shape else hint}; got {jnp.shape(leaf)}"
            )


def without_clipping(cell: Cell) -> Cell:
    """Return the cell with every `ClippedCell` replaced by the cell inside, the same map forward.

    Its Jacobian is therefore the same, while the backward pass of a ClippedCell is not the
    transpose of a matrix.
    """
    if isinstance(cell, ClippedCell):
        return without_clipping(cell.cell)
    if isinstance(cell, Stack):
        return dataclasses.replace(
            cell, cells=tuple(without_clipping(layer) for layer in cell.cells)
        )
    return cell


def flat_recurrence(
    cell: Cell, params: Params, carry: Carry, xs: Any
) -> tuple[Float[Array, " N"], Callable[[Any, Any], Array], Array]:
    """Validate one unbatched sequence and return its step as a function of a flat carry.

    All arrays are converted to float32 at least, because QR and SVD do not support half
    precision. The result describes the network with these parameters, with steps rounded to
    float32. A ClippedCell counts as the cell inside it.

    Args:
      cell: static.
      params: the cell's.
      carry: leaves without batch axes, N numbers in all.
      xs: `[T, D]`, T >= 1.

    Returns:
      (start, step, xs): the carry as one vector `[N]` in the order of its leaves;
      `step(vector [N], x [D]) -> vector [N]`; and xs as an array.

    Raises:
      TypeError: a leaf of the carry is not floating; the cell has a custom backward pass, and so
        no Jacobian.
      ValueError: xs is not `[T, D]` with T >= 1, or the carry is not like cell.initial_carry().
    """
    check_floating(carry)
    if jnp.ndim(xs) != 2 or jnp.shape(xs)[0] < 1:
        raise ValueError(
            "xs must be one sequence [T, D] of at least one step, without batch axes; got shape "
            f"{jnp.shape(xs)}. For a batch, use jax.vmap over axis 1 of xs and axis 0 of the carry"
        )
    xs = check_inputs(cell, xs)
    check_carry(cell, carry, ())
    params, carry, xs = jax.tree.map(at_least_float32, (params, carry, xs))
    start, unravel = ravel_pytree(carry)
    inner = without_clipping(cell)

    def step(vector: Array, x: Array) -> Array:
        left, _ = inner(params, unravel(vector), x)
        return ravel_pytree(left)[0].astype(start.dtype)

    traced, left = jax.make_jaxpr(step, return_shape=True)(start, xs[0])
    if left.shape != start.shape:
        raise ValueError(
            f"{type(cell).__name__} returned a carry of {left.size} numbers for one of "
            f"{start.size}; pass cell.initial_carry(), without batch axes"
        )
    if _has_custom_vjp(traced.jaxpr):
        raise TypeError(
            f"{type(cell).__name__} has a custom backward pass (jax.custom_vjp, as in "
            "clip_cotangent), and therefore no Jacobian; pass the cell without it. gradient_by_lag "
            "and lag_profile support custom backward passes"
        )
    return start, step, xs


def flat_map(
    function: Callable[[Carry], Carry], carry: Carry
) -> tuple[Float[Array, " N"], Callable[[Any, Any], Array]]:
    """Return a map `carry -> carry` as a function of a flat carry, and the flat start.

    Args:
      function: static.
      carry: floating leaves, N numbers in all; half precision is converted to float32.

    Returns:
      (start, step): the carry as one vector `[N]`; `step(vector [N], anything) -> vector [N]`.

    Raises:
      TypeError: a leaf of the carry is not floating, or the function has a custom backward pass.
      ValueError: the function returns a carry of another structure or shape.
    """
    check_floating(carry)
    carry = jax.tree.map(at_least_float32, carry)
    start, unravel = ravel_pytree(carry)

    def step(vector: Array, _: Any) -> Array:
        return ravel_pytree(function(unravel(vector)))[0].astype(start.dtype)

    left = jax.eval_shape(function, carry)
    got, want = (
        [(jax.tree_util.keystr(path), jnp.shape(leaf)) for path, leaf in leaves]
        for leaves in map(jax.tree_util.tree_leaves_with_path, (left, carry))
    )
    if jax.tree.structure(left) != jax.tree.structure(carry) or got != want:
        raise ValueError(
            "function must return a carry of the structure and shapes of its argument, "
            f"{want[:5]}; got {got[:5]}"
        )
    if _has_custom_vjp(jax.make_jaxpr(step)(start, None).jaxpr):
        raise TypeError(
            "function has a custom backward pass (jax.custom_vjp), and therefore no Jacobian; pass "
            "it without"
        )
    return start, step


def _has_custom_vjp(jaxpr: Any) -> bool:
    """Return whether a program contains a jax.custom_vjp; JAX raises for its jvp only when run."""
    if any(eqn.primitive.name.startswith("custom_vjp") for eqn in jaxpr.eqns):
        return True
    leaves = [leaf for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values()))]
    inner = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return any(_has_custom_vjp(part) for part in inner if hasattr(part, "eqns"))


def at_least_float32(leaf: Any) -> Any:
    """Return a half-precision array as float32; all other arrays unchanged."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if is_floating(leaf) else leaf


def scaled_norm(a: Array, axes: tuple[int, ...]) -> Array:
    """Compute sqrt(sum a^2) over the axes, at least in float32.

    The result is inf or 0 only where the norm itself leaves the dtype's range.
    """
    last = tuple(range(-len(axes), 0))
    seen = measure(jnp.moveaxis(a, axes, last), a.ndim - len(axes))
    return jnp.ldexp(seen.size, seen.exponent)


def step_and_jvp(
    step: Callable[[Any, Any], Array], vector: Array, x: Array, tangents: Array
) -> tuple[Array, Array]:
    """Compute one step, and the product of its Jacobian with the columns of a matrix."""
    left = step(vector, x)
    along = jax.vmap(
        lambda t: jax.jvp(lambda v: step(v, x), (vector,), (t,))[1], in_axes=1, out_axes=1
    )
    return left, along(tangents)
