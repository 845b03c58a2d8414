"""One piece of a sequence, taken back by hand: in goes the cotangent of the leaving carry, out that of the entering one."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.numerics import is_floating
from tbptt.types import Batch, Carry, LossFn, Params

Moving: TypeAlias = list[Array]  # the floating leaves of a carry: only these have cotangents (a counter has none)


def moving(carry: Carry) -> Moving:
    """Returns the leaves that a gradient flows through."""
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(carry) if is_floating(leaf)]


def run_segment(
    loss_fn: LossFn, params: Params, floating: Moving, carry: Carry, piece: Batch
) -> tuple[Float[Array, ""], Moving]:
    """Runs a piece from `carry` with its floating leaves replaced: `(loss_sum, floating leaves of the leaving carry)`."""
    given = iter(floating)
    entering = jax.tree.map(lambda leaf: next(given) if is_floating(leaf) else leaf, carry)
    loss_sum, leaving = loss_fn(params, entering, piece)
    return loss_sum, moving(leaving)


def linearized(loss_fn: LossFn, params: Params, carry: Carry, piece: Batch) -> Callable[[Moving], tuple[Params, Moving]]:
    """Linearizes a piece at its entering carry, for any number of cotangents.

    d_params, d_entering = back(d_leaving)      # of  loss_sum + <d_leaving, leaving carry>
    """
    loss_sum, pull = jax.vjp(lambda p, c: run_segment(loss_fn, p, c, carry, piece), params, moving(carry))
    one = jnp.ones_like(loss_sum[0])
    return lambda d_leaving: pull((one, d_leaving))


def losses_back(loss_fn: LossFn, params: Params, carries: Carry, pieces: Batch) -> tuple[Params, Moving]:
    """Differentiates the losses of S pieces `[S, ...]` side by side: by params, summed over them, and by each carry."""

    def total(params: Params, floating: Moving) -> Array:
        run = jax.vmap(lambda f, c, b: run_segment(loss_fn, params, f, c, b)[0])
        return jnp.sum(run(floating, carries, pieces))

    return jax.grad(total, argnums=(0, 1))(params, moving(carries))


def carries_back(
    loss_fn: LossFn, params: Params, carries: Carry, pieces: Batch, d_leaving: Moving
) -> tuple[Params, Moving]:
    """Takes cotangents back through S pieces. Their own losses are no part of it: 0 times one that is inf would be NaN."""

    def leaving(params: Params, floating: Moving) -> Moving:
        return jax.vmap(lambda f, c, b: run_segment(loss_fn, params, f, c, b)[1])(floating, carries, pieces)

    return jax.vjp(leaving, params, moving(carries))[1](d_leaving)
