"""What the diagnostics of one recurrence share: checks at the door, safe norms, a carry as one flat vector."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from tbptt.types import Carry, Cell, Params


def check_floating(carry: Carry) -> None:
    """Raises a TypeError that names the first leaf of a carry by which nothing can be differentiated."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"carry{jax.tree_util.keystr(path)} is {dtype}: gradients and Jacobians by a carry need floating leaves. "
                "Keep counters and symbols out of the carry (feed them in as inputs)"
            )


def one_sequence(
    cell: Cell, params: Params, carry: Carry, xs: Any
) -> tuple[Float[Array, " N"], Callable[[Any, Any], Array], Array]:
    """Checks one unbatched sequence and flattens its carry.

    Args:
      cell: static.
      params: the cell's.
      carry: leaves without batch axes, N numbers in all.
      xs: `[T, D]`, T >= 1.

    Returns:
      (start, step, xs): the carry as one vector `[N]` in the order of its leaves, `step(vector [N], x [D]) -> vector
      [N]`, and xs as an array.

    Raises:
      TypeError: a leaf of the carry is not floating.
      ValueError: xs is not `[T, D]` with T >= 1.
    """
    check_floating(carry)
    xs = jnp.asarray(xs)
    if xs.ndim != 2 or xs.shape[0] < 1:
        raise ValueError(
            f"xs must be one sequence [T, D] of at least one step, without batch axes; got shape {xs.shape}. For a batch, "
            "jax.vmap over xs' axis 1 and the carry's axis 0"
        )
    start, unravel = ravel_pytree(carry)

    def step(vector: Array, x: Array) -> Array:
        left, _ = cell(params, unravel(vector), x)
        return ravel_pytree(left)[0]

    left = jax.eval_shape(step, start, xs[0])
    if left.shape != start.shape:
        raise ValueError(
            f"{type(cell).__name__} returned a carry of {left.size} numbers for one of {start.size}; give it "
            "cell.initial_carry(), without batch axes"
        )
    return start, step, xs


def safe_norm(a: Array, axes: tuple[int, ...]) -> Array:
    """Computes sqrt(sum a^2) over the axes without over- or underflow of the squares; inf and NaN come out as such."""
    largest = jnp.max(jnp.abs(a), axis=axes, keepdims=True) if axes else jnp.abs(a)
    usable = (largest > 0) & jnp.isfinite(largest)
    scale = jnp.where(usable, largest, 1)
    norms = scale * jnp.sqrt(jnp.sum(jnp.square(a / scale), axis=axes, keepdims=True))
    return jnp.squeeze(jnp.where(usable, norms, largest), axis=axes)


def push(step: Callable[[Any, Any], Array], vector: Array, x: Array, tangents: Array) -> tuple[Array, Array]:
    """Takes a step and multiplies its Jacobian by the columns of a matrix."""
    left = step(vector, x)
    along = jax.vmap(lambda t: jax.jvp(lambda v: step(v, x), (vector,), (t,))[1], in_axes=1, out_axes=1)
    return left, along(tangents)
