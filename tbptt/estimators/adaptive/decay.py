"""A running estimate of gradients by lag, and the window that it leads to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tbptt.estimators.adaptive.by_lag import measure_by_lag
from tbptt.estimators.adaptive.choice import WindowChoice
from tbptt.estimators.adaptive.window_choice import choose_window
from tbptt.estimators.truncated import Past
from tbptt.numerics import norm_dtype
from tbptt.types import Carry, LossFn, Params


class Decay(NamedTuple):
    """Means over estimates; fields as in `ByLag`.

    estimates: scalar, how many
    broken: scalar, whether the newest one was not finite, and left out
    """

    phi: Float[Array, " lags"]
    parts: Float[Array, " parts"]
    largest: Float[Array, ""]
    estimates: Int[Array, ""]
    broken: Bool[Array, ""]


def init_decay(params: Params, carry: Carry, lags: int) -> Decay:
    """Makes the estimate before anything was measured: zeros that count for nothing."""
    dtype = norm_dtype((params, carry))
    none = jnp.zeros((lags,), dtype)
    return Decay(none, none[1:], jnp.zeros((), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool))


def remeasured(loss_fn: LossFn, params: Params, past: Past, old: Decay, lags: int, smoothing: float) -> Decay:
    """Measures once more and takes running means; what is not finite, or of losses without weight, does not enter them."""
    new = measure_by_lag(loss_fn, params, past.carry, past.batch, lags)
    finite = jnp.all(jnp.isfinite(new.phi)) & jnp.all(jnp.isfinite(new.parts)) & jnp.isfinite(new.largest)
    counts = finite & (new.weight != 0)
    share = jnp.maximum(1 - smoothing, 1 / (old.estimates.astype(new.phi.dtype) + 1))

    def mixed(a: Array, b: Array) -> Array:
        return jnp.where(counts, a + share * (b - a), a)

    return Decay(
        phi=mixed(old.phi, new.phi),
        parts=mixed(old.parts, new.parts),
        largest=mixed(old.largest, new.largest),
        estimates=old.estimates + counts,
        broken=~finite,
    )


def choose(decay: Decay, windows: tuple[int, ...], delta: float, tau: int, k1: int, level: float) -> WindowChoice:
    """Chooses by `choose_window`; the largest window before the first estimate, and after one that was not finite."""
    ratios = jnp.where(decay.phi[:-1] > 0, decay.parts / jnp.where(decay.phi[:-1] > 0, decay.phi[:-1], 1), 0)
    scale = decay.largest / jnp.max(ratios)  # inf where no step contributes: then nothing is left out
    chosen = choose_window(decay.phi, windows, delta, tau, k1=k1, level=level, scale=scale)
    known = ~decay.broken & (decay.estimates > 0)
    return jax.tree.map(lambda a, b: jnp.where(known, a, b), chosen, unknown(decay, windows))


def unknown(decay: Decay, windows: tuple[int, ...]) -> WindowChoice:
    """The choice where nothing is known: the largest window, and no bound."""
    dtype = decay.phi.dtype
    shape = (len(windows),)  # an array each: a train step donates its state, and no buffer can be donated twice
    return WindowChoice(
        chosen=jnp.asarray(len(windows) - 1, jnp.int32),
        beta=jnp.asarray(jnp.nan, dtype),
        interval=jnp.asarray([0, jnp.inf], dtype),
        absolute=jnp.full(shape, jnp.inf, dtype),
        relative=jnp.full(shape, jnp.inf, dtype),
        decays=jnp.zeros((), bool),
        enough=jnp.zeros((), bool),
    )
