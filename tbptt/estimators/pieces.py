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
