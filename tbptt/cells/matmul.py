"""Matrix products of a cell, in its compute dtype: bfloat16 operands, accumulated and returned in the carry's dtype."""

import math

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# A sum of so few outer products XLA computes in one loop with the bias; a matrix product is a call of its own, slow if so
# small.
FEW = 4


def product(a: Float[Array, "*rows M"], w: Float[Array, "M N"], compute: DTypeLike | None) -> Float[Array, "*rows N"]:
    """Computes a w. With a compute dtype both operands are rounded to it, and the sum runs in a's own dtype."""
    if compute is None:
        return a @ w
    return jnp.matmul(a.astype(compute), w.astype(compute), preferred_element_type=a.dtype)


def project_inputs(
    xs: Float[Array, "*rows D"], w_x: Float[Array, "D N"], b: Float[Array, " N"], compute: DTypeLike | None
) -> Float[Array, "*rows N"]:
    """Computes z = x w_x + b, for any number of steps and lanes at once."""
    D = w_x.shape[0]
    if compute is None and D <= FEW:
        return sum((xs[..., i, None] * w_x[i] for i in range(D)), b)
    return product(xs, w_x, compute) + b


def outer(a: Float[Array, "*rows M"], d: Float[Array, "*rows N"], compute: DTypeLike | None) -> Float[Array, "M N"]:
    """Sums the outer products of all rows: the gradient of a weight matrix over a whole block of steps, as ONE product."""
    return product(rows(a).T, rows(d), compute)


def outer_and_sum(
    a: Float[Array, "*rows M"], d: Float[Array, "*rows N"], compute: DTypeLike | None
) -> tuple[Float[Array, "M N"], Float[Array, " N"]]:
    """Returns `outer(a, d)` and the sum of all rows of d, a bias's gradient: what a column of ones beside a makes of d.

    With a compute dtype the sum is one of its own, as d is not to be rounded in it.
    """
    if compute is not None:
        return outer(a, d, compute), rows(d).sum(0)
    both = outer(jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1), d, compute)
    return both[:-1], both[-1]


def rows(a: Float[Array, "*rows N"]) -> Float[Array, "R N"]:
    """Flattens all leading axes, time and batch alike; one row if there are none."""
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
