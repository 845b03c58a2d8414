"""Vector-Jacobian products of a loss function over segments of a sequence."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.numerics import floating_leaves, replace_floating_leaves
from tbptt.types import Batch, Carry, LossFn, Params

# The floating leaves of a carry, or cotangents of them. Other leaves (counters) have no cotangent.
Floating: TypeAlias = list[Array]


def run_segment(
    loss_fn: LossFn, params: Params, floating: Floating, carry: Carry, segment: Batch
) -> tuple[Float[Array, ""], Floating]:
    """Run a segment from `carry` with its floating leaves replaced by `floating`.

    Returns:
      `(loss_sum, floating leaves of the leaving carry)`.
    """
    loss_sum, leaving = loss_fn(params, replace_floating_leaves(carry, floating), segment)
    return loss_sum, floating_leaves(leaving)


def segment_vjp(
    loss_fn: LossFn, params: Params, carry: Carry, segment: Batch
) -> Callable[[Floating], tuple[Params, Floating]]:
    """Linearize a segment at its entering carry, for any number of cotangents.

    d_params, d_entering = vjp(d_leaving)      # of  loss_sum + <d_leaving, leaving carry>
    """
    (loss_sum, _), vjp = jax.vjp(
        lambda p, c: run_segment(loss_fn, p, c, carry, segment), params, floating_leaves(carry)
    )
    one = jnp.ones_like(loss_sum)
    return lambda d_leaving: vjp((one, d_leaving))


def grad_of_losses(
    loss_fn: LossFn, params: Params, carries: Carry, segments: Batch
) -> tuple[Params, Floating]:
    """Differentiate the summed loss of S independent segments `[S, ...]`.

    Returns:
      The gradient by params, and by the floating leaves `[S, ...]` of the entering carries.
    """

    def total(params: Params, floating: Floating) -> Array:
        run = jax.vmap(lambda f, c, b: run_segment(loss_fn, params, f, c, b)[0])
        return jnp.sum(run(floating, carries, segments))

    return jax.grad(total, argnums=(0, 1))(params, floating_leaves(carries))


def vjp_of_carries(
    loss_fn: LossFn, params: Params, carries: Carry, segments: Batch, d_leaving: Floating
) -> tuple[Params, Floating]:
    """Pull cotangents `[S, ...]` of the leaving carries back through S segments.

    The losses of the segments do not take part: 0 times an infinite derivative would be NaN.

    Returns:
      As `grad_of_losses`.
    """

    def leaving(params: Params, floating: Floating) -> Floating:
        run = jax.vmap(lambda f, c, b: run_segment(loss_fn, params, f, c, b)[1])
        return run(floating, carries, segments)

    return jax.vjp(leaving, params, floating_leaves(carries))[1](d_leaving)
