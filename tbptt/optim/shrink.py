"""A rule of Pascanu et al. that shrinks the recurrent weights if the gradient is not finite."""

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
    """State of `shrink_non_finite`.

    shrunk:       scalar, whether the last gradient was replaced
    shrink_count: scalar, the number of replaced gradients
    """

    shrunk: Bool[Array, ""]
    shrink_count: Int[Array, ""]


def leaves_named(*names: str) -> Callable[[Params], Any]:
    """Return a mask function that selects leaves by the last name of their path.

    For example `leaves_named("w_h")` selects `.cell.w_h` and `["layer"]["w_h"]`.

    Returns:
      A function `params -> tree of booleans`, as the masks of optax.
    """

    def mask(params: Params) -> Any:
        def selected(path: Any, _: Any) -> bool:
            if not path:
                return False
            return str(getattr(path[-1], "name", getattr(path[-1], "key", None))) in names

        return jax.tree_util.tree_map_with_path(selected, params)

    return mask


recurrent_weights = leaves_named("w_h", "w_n", "a")  # those of the cells of this library


def shrink_non_finite(
    fraction: float = 0.02,
    max_norm: float = 1e10,
    mask: Callable[[Params], Any] = recurrent_weights,
) -> optax.GradientTransformation:
    """Replace a non-finite or huge gradient by one that shrinks the recurrent weights.

        g                                          if |g| is finite and at most max_norm
        fraction * w  for the selected leaves,
        0             for all others               otherwise

    Under gradient descent the selected weights w then shrink by the factor 1 - lr * fraction, and
    the other parameters do not change, so the recurrence becomes more contracting. An adaptive
    optimizer rescales the step. Put this transformation first:

        optimizer = optax.chain(shrink_non_finite(), clip_by_global_norm(1.0), optax.sgd(0.1))

    Parameters that are NaN or inf themselves remain so. If the carry of a stream is NaN, all later
    gradients are NaN and the weights would shrink to 0; wrap the estimator in
    `reset_on_non_finite`.

    Args (all static):
      fraction: positive, see above.
      max_norm: positive; larger global norms are replaced; inf replaces non-finite gradients only.
      mask: `params -> tree of booleans` like params, see `leaves_named`; by default the recurrent
        weights of the cells of this library, the leaves named w_h, w_n or a.

    Returns:
      An optax transformation with a `ShrinkState`; its update needs params.

    Raises:
      ValueError: fraction or max_norm is not positive; at init: mask selects no leaf; at update:
        params is None.

    References: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural
    networks*, ICML 2013 (the published code of the paper).
    """
    if not (fraction > 0 and max_norm > 0):
        raise ValueError(
            "shrink_non_finite: fraction and max_norm must be positive; got "
            f"fraction={fraction}, max_norm={max_norm}"
        )

    def init(params: Params) -> ShrinkState:
        if not any(jax.tree.leaves(mask(params))):
            paths = jax.tree_util.tree_leaves_with_path(params)
            names = [jax.tree_util.keystr(path) for path, _ in paths]
            raise ValueError(
                f"shrink_non_finite's mask selects none of the leaves {names}; pass "
                "mask=leaves_named('...') with the name of the recurrent weights"
            )
        return ShrinkState(jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ShrinkState]:
        if params is None:
            raise ValueError(
                "shrink_non_finite needs the parameters; got params=None. Call "
                "update(grads, state, params)"
            )
        norm = global_norm(updates)
        is_bad = ~jnp.isfinite(norm) | (norm > max_norm)

        def replace(selected: bool, g: Array, w: Array) -> Array:
            shrinking = (fraction * w).astype(g.dtype) if selected else jnp.zeros_like(g)
            return jnp.where(is_bad, shrinking, g)

        new = jax.tree.map(replace, mask(params), updates, params)
        return new, ShrinkState(is_bad, count(state.shrink_count, is_bad))

    return optax.GradientTransformation(init, update)
