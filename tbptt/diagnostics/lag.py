"""How much of a loss's gradient arrives k steps back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.types import Carry, Cell, Params


def gradient_by_lag(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[Array, "T *batch D"],
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
      norms `[T, *batch]`, lag 1 first.
    """

    # A zero added to every carry: the gradient by that zero is the gradient by the carry.
    def with_nudges(nudges: Carry) -> Array:
        def body(carry: Carry, x_and_nudge: Any) -> tuple[Carry, Any]:
            x, nudge = x_and_nudge
            return cell(params, jax.tree.map(jnp.add, carry, nudge), x)

        _, ys = jax.lax.scan(body, carry, (xs, nudges))
        return last_loss(jax.tree.map(lambda leaf: leaf[-1], ys))

    batch_dims = xs.ndim - 2
    nudges = jax.tree.map(lambda leaf: jnp.zeros((xs.shape[0], *leaf.shape), leaf.dtype), carry)
    entering = jax.grad(with_nudges)(nudges)
    squares = jax.tree.map(lambda g: jnp.sum(g**2, axis=tuple(range(1 + batch_dims, g.ndim))), entering)
    return jnp.sqrt(jax.tree.reduce(jnp.add, squares))[::-1]
