"""A running estimate of gradient norms by lag, and the choice of a window from it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tbptt.estimators.adaptive.by_lag import measure_by_lag
from tbptt.estimators.adaptive.choice import WindowChoice
from tbptt.estimators.adaptive.window_choice import choose_window
from tbptt.estimators.truncated import Past
from tbptt.numerics import norm_dtype, select
from tbptt.types import Carry, LossFn, Params


class Decay(NamedTuple):
    """Running means over estimates; phi, contributions and largest as in `ByLag`.

    estimates:  scalar, the number of estimates in the means
    non_finite: scalar, whether the newest estimate was not finite, and therefore ignored
    """

    phi: Float[Array, " lags"]
    contributions: Float[Array, " contributions"]
    largest: Float[Array, ""]
    estimates: Int[Array, ""]
    non_finite: Bool[Array, ""]


def init_decay(params: Params, carry: Carry, lags: int) -> Decay:
    """Return the state before the first estimate, with zeros for the means."""
    dtype = norm_dtype((params, carry))
    zeros = jnp.zeros((lags,), dtype)
    return Decay(
        phi=zeros,
        contributions=zeros[1:],
        largest=jnp.zeros((), dtype),
        estimates=jnp.zeros((), jnp.int32),
        non_finite=jnp.zeros((), bool),
    )


def update_decay(
    loss_fn: LossFn, params: Params, past: Past, old: Decay, lags: int, smoothing: float
) -> Decay:
    """Measure the gradient norms by lag once more, and update the running means.

    An estimate that is not finite, or whose losses have no weight, does not enter the means.
    """
    new = measure_by_lag(loss_fn, params, past.carry, past.batch, lags)
    finite = (
        jnp.all(jnp.isfinite(new.phi))
        & jnp.all(jnp.isfinite(new.contributions))
        & jnp.isfinite(new.largest)
    )
    counts = finite & (new.weight != 0)
    rate = jnp.maximum(1 - smoothing, 1 / (old.estimates.astype(new.phi.dtype) + 1))

    def averaged(a: Array, b: Array) -> Array:
        return jnp.where(counts, a + rate * (b - a), a)

    return Decay(
        phi=averaged(old.phi, new.phi),
        contributions=averaged(old.contributions, new.contributions),
        largest=averaged(old.largest, new.largest),
        estimates=old.estimates + counts,
        non_finite=~finite,
    )


def choose(
    decay: Decay, windows: tuple[int, ...], delta: float, tau: int, k1: int, level: float
) -> WindowChoice:
    """Choose a window by `choose_window`.

    Before the first estimate, and after one that was not finite, the largest window is chosen.
    """
    phi = decay.phi[:-1]
    ratios = jnp.where(phi > 0, decay.contributions / jnp.where(phi > 0, phi, 1), 0)
    scale = decay.largest / jnp.max(ratios)  # inf if no step contributes: nothing is left out
    chosen = choose_window(decay.phi, windows, delta, tau, k1=k1, level=level, scale=scale)
    is_known = ~decay.non_finite & (decay.estimates > 0)
    return select(is_known, chosen, largest_window(decay, windows))


def largest_window(decay: Decay, windows: tuple[int, ...]) -> WindowChoice:
    """Return the choice without an estimate: the largest window, and no bound."""
    dtype = decay.phi.dtype
    shape = (len(windows),)  # separate arrays: a train step donates its state, each buffer once
    return WindowChoice(
        chosen=jnp.asarray(len(windows) - 1, jnp.int32),
        beta=jnp.asarray(jnp.nan, dtype),
        interval=jnp.asarray([0, jnp.inf], dtype),
        absolute=jnp.full(shape, jnp.inf, dtype),
        relative=jnp.full(shape, jnp.inf, dtype),
        decays=jnp.zeros((), bool),
        enough=jnp.zeros((), bool),
    )
