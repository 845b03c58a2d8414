"""The decay of a tail: a line through logarithms, the interval of its slope, and where nothing can be said."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.special import stdtrit


class TailFit(NamedTuple):
    """A geometric decay `phi_k <= exp(anchor + slope (k - tau))`, k >= tau; slope is the upper end of its interval.

    usable: whether every phi is a number >= 0
    ended:  usable, and the last phi is 0
    decays: ended, or usable with slope < 0
    """

    beta: Float[Array, ""]
    interval: Float[Array, " 2"]
    slope: Float[Array, ""]
    anchor: Float[Array, ""]
    usable: Bool[Array, ""]
    ended: Bool[Array, ""]
    decays: Bool[Array, ""]


def fit_tail(phi: Float[Array, " lags"], tau: int, level: float) -> TailFit:
    """Fits log phi_k = a + b k by least squares over the lags k >= tau whose phi is above 0, with Student's interval of b.

    Fewer than three such lags give no interval: beta is NaN, (0, inf) its interval, and the slope inf; none because all of
    the tail is 0 gives beta = 0 for certain. Whatever phi holds, nothing but beta is NaN.
    """
    lags = phi.shape[0]
    usable = jnp.all(jnp.isfinite(phi) & (phi >= 0))
    k = jnp.arange(1, lags + 1, dtype=phi.dtype)
    seen = (k >= tau) & (phi > 0) & jnp.isfinite(phi)
    logs = jnp.log(jnp.where(seen, phi, 1))
    n = jnp.sum(seen)
    number = jnp.maximum(n, 1).astype(phi.dtype)
    x = jnp.where(seen, k - jnp.sum(k * seen) / number, 0)
    y = jnp.where(seen, logs - jnp.sum(logs) / number, 0)
    spread = jnp.where(n >= 2, jnp.sum(x * x), 1)
    b = jnp.sum(x * y) / spread
    freedom = jnp.maximum(n - 2, 1).astype(phi.dtype)
    error = jnp.sqrt(jnp.sum(jnp.square(y - b * x)) / freedom / spread)
    quantiles = np.nan_to_num(stdtrit(np.maximum(np.arange(lags + 1) - 2, 1), (1 + level) / 2))
    half = jnp.asarray(quantiles, phi.dtype)[n] * error
    known, nothing = usable & (n >= 3), usable & (n == 0)
    high = jnp.where(known, b + half, jnp.where(nothing, -jnp.inf, jnp.inf))
    low = jnp.where(known, b - half, -jnp.inf)
    ended = usable & (phi[-1] == 0)
    slope = jnp.where(jnp.isfinite(high), high, 0)
    return TailFit(
        beta=jnp.where(known, jnp.exp(b), jnp.where(nothing, 0, jnp.nan)).astype(phi.dtype),
        interval=jnp.exp(jnp.stack([low, high])),
        slope=high,
        anchor=jnp.max(jnp.where(seen, logs - slope * (k - tau), -jnp.inf)),
        usable=usable,
        ended=ended,
        decays=ended | (known & (high < 0)),
    )
