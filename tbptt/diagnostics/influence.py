"""Measure how strongly a later carry depends on an earlier one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from tbptt.diagnostics._recurrence import flat_recurrence, step_and_jvp
from tbptt.types import Carry, Cell, Params


def carry_influence(cell: Cell, params: Params, carry: Carry, xs: Float[ArrayLike, "T D"]) -> Any:
    """Compute the norm of d(carry after 1 .. T steps) / d(field of the initial carry).

        influence.f[n - 1] = || d carry_{n-1} / d f_{-1} ||_2,    n = 1 .. T

    the exact spectral norm (largest singular value) of the columns that belong to field f of the
    initial carry; the rows are all fields of the later carry. The product of Jacobians is
    rescaled by powers of two at every step, so a norm is inf or 0 only where the norm itself
    leaves the dtype's range. For small H: a step costs N jvps and an SVD. See
    jacobian_product_svd for logs in any range and for all fields together.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all.
      xs: `[T, D]`.

    Returns:
      a pytree like the carry, leaves `[T]`.

    Raises:
      TypeError, ValueError: as step_jacobians.
    """
    start, step, xs = flat_recurrence(cell, params, carry, xs)
    leaves, structure = jax.tree.flatten(carry)
    edges = np.cumsum([np.size(leaf) for leaf in leaves])[:-1].tolist()

    def body(
        state: tuple[Array, Array, Array], x: Array
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
        vector, product, exponent = state
        vector, product = step_and_jvp(step, vector, x, product)
        _, more = jnp.frexp(jnp.max(jnp.abs(product)))
        product, exponent = jnp.ldexp(product, -more), exponent + more
        norms = [jnp.linalg.norm(columns, ord=2) for columns in jnp.split(product, edges, axis=1)]
        return (vector, product, exponent), tuple(jnp.ldexp(norm, exponent) for norm in norms)

    state = (start, jnp.eye(start.size, dtype=start.dtype), jnp.zeros((), jnp.int32))
    return jax.tree.unflatten(structure, jax.lax.scan(body, state, xs)[1])
