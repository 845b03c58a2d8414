"""Matrix products of a cell: operands in the compute dtype, sums in the dtype of the carry."""

import math

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Input sizes up to which the projection is a sum of scaled rows, which XLA fuses with the bias; a
# matrix product that small is slower.
FEW_INPUTS = 4


def product(
    a: Float[Array, "*rows M"], w: Float[Array, "M N"], compute: DTypeLike | None
) -> Float[Array, "*rows N"]:
    """Compute `a w`; a compute dtype rounds both operands, and the sum keeps the dtype of `a`."""
    if compute is None:
        return a @ w
    return jnp.matmul(a.astype(compute), w.astype(compute), preferred_element_type=a.dtype)


def project_inputs(
    xs: Float[Array, "*rows D"],
    w_x: Float[Array, "D N"],
    b: Float[Array, " N"],
    compute: DTypeLike | None,
) -> Float[Array, "*rows N"]:
    """Compute `z = x w_x + b` for any number of steps and batch rows."""
    D = w_x.shape[0]
    if compute is None and D <= FEW_INPUTS:
        return sum((xs[..., i, None] * w_x[i] for i in range(D)), b)
    return product(xs, w_x, compute) + b


def outer(
    a: Float[Array, "*rows M"], d: Float[Array, "*rows N"], compute: DTypeLike | None
) -> Float[Array, "M N"]:
    """Sum the outer products of all rows: the weight gradient of a block of steps."""
    return product(rows(a).T, rows(d), compute)


def outer_and_sum(
    a: Float[Array, "*rows M"], d: Float[Array, "*rows N"], compute: DTypeLike | None
) -> tuple[Float[Array, "M N"], Float[Array, " N"]]:
    """Compute `outer(a, d)` and the sum of all rows of d, the gradients of a weight and a bias.

    A column of ones appended to `a` gives both in one product. With a compute dtype the sum is
    computed separately, because the product rounds d.
    """
    if compute is not None:
        return outer(a, d, compute), rows(d).sum(0)
    both = outer(jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1), d, compute)
    return both[:-1], both[-1]


def rows(a: Float[Array, "*rows N"]) -> Float[Array, "R N"]:
    """Flatten all leading axes, time and batch; one row if there are none."""
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
