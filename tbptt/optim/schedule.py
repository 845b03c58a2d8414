"""A learning rate that depends on the fraction of the run, whatever limits the run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tbptt.optim.clip import clip_by_global_norm
from tbptt.optim.non_finite import skip_non_finite


class ShareState(NamedTuple):
    """State of `scale_by_share`: the fraction of the run before the update, from 0 to 1."""

    share: Float[Array, ""]


def scale_by_share(rate: Callable[[Array], Any]) -> optax.GradientTransformation:
    """Scale the updates by -rate(share), where share is the fraction of the run so far.

        updates = -rate(share) updates

    The schedules of optax count updates, so they need the length of the run in updates. A run that
    is limited by seconds does not know it. `tbptt.fit` writes the share into the state before an
    update; in a loop of your own call `set_share`. Without either, the share remains 0.

        optax.chain(optax.scale_by_adam(), scale_by_share(optax.cosine_decay_schedule(3e-3, 1)))

    Args:
      rate: static; `share -> learning rate`, share in 0 .. 1, for example a schedule of optax whose
        length is 1.
    """

    def init(params: Any) -> ShareState:
        del params
        return ShareState(jnp.zeros((), jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ShareState]:
        del params
        scale = -jnp.asarray(rate(state.share))
        return jax.tree.map(lambda u: (scale * u).astype(u.dtype), updates), state

    return optax.GradientTransformation(init, update)


def set_share(opt_state: Any, share: float) -> Any:
    """Return the optimizer state with `share` in every `ShareState`; its other leaves as they are.

    Args:
      opt_state: the state of any optimizer; `[S]` shares of several seeds are set alike.
      share: fraction of the run, from 0 to 1.
    """

    def one(node: Any) -> Any:
        return ShareState(jnp.full_like(node.share, share)) if _is_share(node) else node

    return jax.tree.map(one, opt_state, is_leaf=_is_share)


def adam_with_decay(lr: float = 3e-3, clip: float = 1.0) -> optax.GradientTransformation:
    """Make Adam behind clipping by global norm, with a rate that falls along half a cosine.

        rate = lr / 100 + 0.99 lr (1 + cos(pi share)) / 2

    Non-finite updates are skipped. share is the fraction of the run, see `scale_by_share`.

    Args:
      lr: the initial learning rate.
      clip: the global norm at which gradients are clipped.
    """
    rate = optax.cosine_decay_schedule(lr, 1, alpha=0.01)
    adam = optax.chain(optax.scale_by_adam(), scale_by_share(rate))
    return optax.chain(clip_by_global_norm(clip), skip_non_finite(adam))


def _is_share(node: Any) -> bool:
    return isinstance(node, ShareState)
