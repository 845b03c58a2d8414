"""Matrix products of a cell, in its compute dtype: bfloat16 operands, accumulated and returned in the carry's dtype."""

import math

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def product(a: Float[Array, "*rows M"], w: Float[Array, "M N"], compute: DTypeLike | None) -> Float[Array, "*rows N"]:
    """Computes a w. With a compute dtype both operands are rounded to it, and the sum runs in a's own dtype."""
    if compute is None:
        return a @ w
    return jnp.matmul(a.astype(compute), w.astype(compute), preferred_element_type=a.dtype)


def outer(a: Float[Array, "*rows M"], d: Float[Array, "*rows N"], compute: DTypeLike | None) -> Float[Array, "M N"]:
    """Sums the outer products of all rows: the gradient of a weight matrix over a whole block of steps, as ONE product."""
    return product(rows(a).T, rows(d), compute)


def rows(a: Float[Array, "*rows N"]) -> Float[Array, "R N"]:
    """Flattens all leading axes, time and batch alike; one row if there are none."""
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
