"""What the diagnostics of one recurrence share: checks at the door, a safe norm, a carry as one flat vector."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from tbptt.cells import Stack
from tbptt.cells.clipped import ClippedCell
from tbptt.numerics import is_floating, measure
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.validate import check_floating


def check_inputs(cell: Cell, xs: Any) -> Array:
    """Returns xs as an array; raises a ValueError if it is not `[T, *batch, D]` of at least one step for this cell."""
    xs = jnp.asarray(xs)
    if xs.ndim < 2 or xs.shape[0] < 1:
        raise ValueError(f"xs must be [T, *batch, D] with at least one step; got shape {xs.shape}")
    if xs.shape[-1] != cell.input_dim:
        raise ValueError(
            f"xs must be [T, *batch, D] with D = {type(cell).__name__}.input_dim = {cell.input_dim}; got shape {xs.shape}"
        )
    return xs


def check_carry(cell: Cell, carry: Carry, batch_shape: tuple[int, ...]) -> None:
    """Raises a ValueError that names the first leaf of a carry whose shape is not that of the cell's initial one."""
    wanted = jax.eval_shape(lambda: cell.initial_carry(batch_shape))
    start = f"cell.initial_carry({batch_shape if batch_shape else ''})"
    if jax.tree.structure(carry) != jax.tree.structure(wanted):
        raise ValueError(f"carry must be like {start}, {jax.tree.structure(wanted)}; got {jax.tree.structure(carry)}")
    for (path, leaf), want in zip(jax.tree_util.tree_leaves_with_path(carry), jax.tree.leaves(wanted), strict=True):
        if jnp.shape(leaf) != want.shape:
            without = "" if batch_shape else ": one sequence, without batch axes (for a batch, jax.vmap)"
            raise ValueError(
                f"carry{jax.tree_util.keystr(path)} must have the shape {want.shape} of {start}{without}; got "
                f"{jnp.shape(leaf)}"
            )


def without_clipping(cell: Cell) -> Cell:
    """Returns the cell with every `ClippedCell` in it replaced by what it wraps: the same map forward.

    So also the same Jacobian; what a ClippedCell's backward pass computes is the transpose of no matrix.
    """
    if isinstance(cell, ClippedCell):
        return without_clipping(cell.cell)
    if isinstance(cell, Stack):
        return dataclasses.replace(cell, cells=tuple(without_clipping(layer) for layer in cell.cells))
    return cell


def one_sequence(
    cell: Cell, params: Params, carry: Carry, xs: Any
) -> tuple[Float[Array, " N"], Callable[[Any, Any], Array], Array]:
    """Checks one unbatched sequence and flattens its carry, all in float32 at least.

    Half precision is widened (params, carry and xs), since no QR or SVD is made for it: what is then measured is the
    network with these very parameters, its steps rounded to float32. A ClippedCell counts as the cell inside it.

    Args:
      cell: static.
      params: the cell's.
      carry: leaves without batch axes, N numbers in all.
      xs: `[T, D]`, T >= 1.

    Returns:
      (start, step, xs): the carry as one vector `[N]` in the order of its leaves, `step(vector [N], x [D]) -> vector
      [N]`, and xs as an array.

    Raises:
      TypeError: a leaf of the carry is not floating; the cell has a backward pass of its own, and so no Jacobian.
      ValueError: xs is not `[T, D]` with T >= 1, or the carry is not like cell.initial_carry().
    """
    check_floating(carry)
    if jnp.ndim(xs) != 2 or jnp.shape(xs)[0] < 1:
        raise ValueError(
            f"xs must be one sequence [T, D] of at least one step, without batch axes; got shape {jnp.shape(xs)}. For a "
            "batch, jax.vmap over xs' axis 1 and the carry's axis 0"
        )
    xs = check_inputs(cell, xs)
    check_carry(cell, carry, ())
    params, carry, xs = jax.tree.map(widened, (params, carry, xs))
    start, unravel = ravel_pytree(carry)
    inner = without_clipping(cell)

    def step(vector: Array, x: Array) -> Array:
        left, _ = inner(params, unravel(vector), x)
        return ravel_pytree(left)[0].astype(start.dtype)

    traced, left = jax.make_jaxpr(step, return_shape=True)(start, xs[0])
    if left.shape != start.shape:
        raise ValueError(
            f"{type(cell).__name__} returned a carry of {left.size} numbers for one of {start.size}; give it "
            "cell.initial_carry(), without batch axes"
        )
    if _own_backward(traced.jaxpr):
        raise TypeError(
            f"{type(cell).__name__} has a backward pass of its own (jax.custom_vjp, as clip_cotangent), so that JAX can "
            "give it no Jacobian: pass the cell without it. gradient_by_lag and lag_profile measure what it sends back"
        )
    return start, step, xs


def _own_backward(jaxpr: Any) -> bool:
    """Says whether a program holds a jax.custom_vjp anywhere: JAX refuses its jvp only where it is run."""
    inside = [getattr(leaf, "jaxpr", leaf) for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values()))]
    return any(eqn.primitive.name.startswith("custom_vjp") for eqn in jaxpr.eqns) or any(
        _own_backward(part) for part in inside if hasattr(part, "eqns")
    )


def widened(leaf: Any) -> Any:
    """Returns a number of half precision as float32, for which there is linear algebra; all others as they are."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if is_floating(leaf) else leaf


def safe_norm(a: Array, axes: tuple[int, ...]) -> Array:
    """Computes sqrt(sum a^2) over the axes, at least in float32; inf or 0 exactly where it leaves the dtype's range."""
    last = tuple(range(-len(axes), 0))
    seen = measure(jnp.moveaxis(a, axes, last), a.ndim - len(axes))
    return jnp.ldexp(seen.size, seen.exponent)


def push(step: Callable[[Any, Any], Array], vector: Array, x: Array, tangents: Array) -> tuple[Array, Array]:
    """Takes a step and multiplies its Jacobian by the columns of a matrix."""
    left = step(vector, x)
    along = jax.vmap(lambda t: jax.jvp(lambda v: step(v, x), (vector,), (t,))[1], in_axes=1, out_axes=1)
    return left, along(tangents)
