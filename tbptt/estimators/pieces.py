"""One piece of a sequence, taken back by hand: in goes the cotangent of the leaving carry, out that of the entering one."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.norms import is_floating
from tbptt.types import Batch, Carry, LossFn, Params

Moving: TypeAlias = list[Array]  # the floating leaves of a carry: only these have cotangents (a counter has none)


def moving(carry: Carry) -> Moving:
    """Returns the leaves that a gradient flows through."""
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(carry) if is_floating(leaf)]


def run_piece(
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
    loss_sum, pull = jax.vjp(lambda p, c: run_piece(loss_fn, p, c, carry, piece), params, moving(carry))
    one = jnp.ones_like(loss_sum[0])
    return lambda d_leaving: pull((one, d_leaving))


def linearized_together(
    loss_fn: LossFn, params: Params, carries: Carry, pieces: Batch
) -> Callable[[float, Moving], tuple[Params, Moving]]:
    """Linearizes S pieces side by side, `[S, ...]` each; the gradients of the parameters are summed over them.

    d_params, d_entering = back(d_loss, d_leaving)      # of  sum_i d_loss loss_sum_i + <d_leaving_i, leaving carry_i>
    """

    def run(params: Params, floating: Moving) -> tuple[Array, Moving]:
        return jax.vmap(lambda f, c, b: run_piece(loss_fn, params, f, c, b))(floating, carries, pieces)

    losses, pull = jax.vjp(run, params, moving(carries))
    return lambda d_loss, d_leaving: pull((jnp.full_like(losses[0], d_loss), d_leaving))
