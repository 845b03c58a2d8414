"""A learning rate that depends on the fraction of the run, whatever limits the run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tbptt.optim.clip import clip_by_global_norm
from tbptt.optim.non_finite import skip_non_finite


class RunFractionState(NamedTuple):
    """State of `scale_by_run_fraction`: the fraction of the run before the update, from 0 to 1."""

    fraction: Float[Array, ""]


def scale_by_run_fraction(rate: Callable[[Array], Any]) -> optax.GradientTransformation:
    """Scale the updates by -rate(fraction), where fraction is the fraction of the run so far.

        updates = -rate(fraction) updates

    The schedules of optax count updates, so they need the length of the run in updates. A run that
    is limited by seconds does not know it. `tbptt.fit` writes the fraction into the state before an
    update; in a loop of your own call `set_run_fraction`. Without either, it remains 0.

        rate = optax.cosine_decay_schedule(3e-3, 1)
        optimizer = optax.chain(optax.scale_by_adam(), scale_by_run_fraction(rate))

    Args:
      rate: static; `fraction -> learning rate`, fraction in 0 .. 1, for example a schedule of
        optax whose length is 1.
    """

    def init(params: Any) -> RunFractionState:
        del params
        return RunFractionState(jnp.zeros((), jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, RunFractionState]:
        del params
        scale = -jnp.asarray(rate(state.fraction))
        return jax.tree.map(lambda u: (scale * u).astype(u.dtype), updates), state

    return optax.GradientTransformation(init, update)


def set_run_fraction(opt_state: Any, fraction: float) -> Any:
    """Return the optimizer state with another `fraction` in every `RunFractionState`.

    Args:
      opt_state: the state of any optimizer; `[S]` fractions of several seeds are set alike.
      fraction: fraction of the run, from 0 to 1.
    """

    def replaced(node: Any) -> Any:
        return (
            node._replace(fraction=jnp.full_like(node.fraction, fraction)) if found(node) else node
        )

    def found(node: Any) -> bool:
        return isinstance(node, RunFractionState)

    return jax.tree.map(replaced, opt_state, is_leaf=found)


def adam_with_decay(lr: float = 3e-3, clip: float = 1.0) -> optax.GradientTransformation:
    """Make Adam behind clipping by global norm, with a rate that falls along half a cosine.

        rate = lr / 100 + 0.99 lr (1 + cos(pi fraction)) / 2

    Non-finite updates are skipped. See `scale_by_run_fraction`.

    Args:
      lr: the initial learning rate.
      clip: the global norm at which gradients are clipped.
    """
    rate = optax.cosine_decay_schedule(lr, 1, alpha=0.01)
    adam = optax.chain(optax.scale_by_adam(), scale_by_run_fraction(rate))
    return optax.chain(clip_by_global_norm(clip), skip_non_finite(adam))
