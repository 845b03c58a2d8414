"""Pascanu's rule: where the gradient is useless, shrink the recurrent weights instead."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from tbptt.numerics import global_norm
from tbptt.optim.clip import count
from tbptt.types import Params


class ShrinkState(NamedTuple):
    """shrunk: whether the last gradient was replaced; shrink_count: how many were."""

    shrunk: Bool[Array, ""]
    shrink_count: Int[Array, ""]


def leaves_named(*names: str) -> Callable[[Params], Any]:
    """Makes a mask, `params -> tree of booleans` as optax's take it: True at leaves whose last name is one of `names`.

    `leaves_named("w_h")` chooses `.cell.w_h` and `["layer"]["w_h"]`.
    """

    def mask(params: Params) -> Any:
        def chosen(path: Any, _: Any) -> bool:
            return bool(path) and str(getattr(path[-1], "name", getattr(path[-1], "key", None))) in names

        return jax.tree_util.tree_map_with_path(chosen, params)

    return mask


recurrent_weights = leaves_named("w_h", "w_n", "a")  # of this library's own cells


def shrink_non_finite(
    fraction: float = 0.02, max_norm: float = 1e10, mask: Callable[[Params], Any] = recurrent_weights
) -> optax.GradientTransformation:
    """Replaces a gradient that is not finite, or huge, by one that makes the recurrent weights a little smaller.

        g                                          if |g| is finite and at most max_norm
        fraction * w  for the chosen leaves,
        0             for all others               otherwise

    Under gradient descent the chosen weights then lose the share lr * fraction, the other parameters stay, and the
    recurrence becomes more contracting; an adaptive optimizer makes a step of its own size of it. Put it first:

        optimizer = optax.chain(shrink_non_finite(), clip_by_global_norm(1.0), optax.sgd(0.1))

    It cannot mend parameters that are themselves NaN or inf: those stay, visibly. Nor a carry that is: gradients would be
    NaN for ever and the weights shrink to 0, so wrap the estimator of a stream in `reset_on_non_finite`.

    Args (all static):
      fraction, max_norm: positive; inf replaces non-finite gradients only.
      mask: `params -> tree of booleans` like params; by default the recurrent weights of this library's cells, the
        leaves named w_h, w_n or a. See `leaves_named`.

    Returns:
      The transformation, with a `ShrinkState`; its update needs params.

    Raises:
      ValueError: fraction or max_norm not positive; at init: mask chooses no leaf; at update: no params.

    References: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013:
    the published code of the paper.
    """
    if not (fraction > 0 and max_norm > 0):
        raise ValueError(f"shrink_non_finite: fraction and max_norm must be positive; got {fraction} and {max_norm}")

    def init(params: Params) -> ShrinkState:
        if not any(jax.tree.leaves(mask(params))):
            names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
            raise ValueError(
                f"shrink_non_finite's mask chooses none of the leaves {names}; pass mask=leaves_named('...') with the "
                "name of the recurrent weights"
            )
        return ShrinkState(jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ShrinkState]:
        if params is None:
            raise ValueError("shrink_non_finite needs the parameters: call update(grads, state, params)")
        norm = global_norm(updates)
        useless = ~jnp.isfinite(norm) | (norm > max_norm)

        def replace(chosen: bool, g: Array, w: Array) -> Array:
            return jnp.where(useless, (fraction * w).astype(g.dtype) if chosen else jnp.zeros_like(g), g)

        new = jax.tree.map(replace, mask(params), updates, params)
        return new, ShrinkState(useless, count(state.shrink_count, useless))

    return optax.GradientTransformation(init, update)
