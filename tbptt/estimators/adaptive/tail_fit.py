"""The geometric decay of a tail, fitted as a line through its logarithms."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


class TailFit(NamedTuple):
    """A geometric decay `phi_k <= exp(anchor + slope (k - tau))` for k >= tau.

    beta:     scalar, exp of the fitted slope; NaN if there is no fit
    interval: `[2]`, the confidence interval of beta
    slope:    scalar, the upper end of the interval of the slope
    anchor:   scalar, such that the line is above every log phi_k that was fitted
    usable:   whether all of phi is finite and >= 0
    ended:    usable, and the last phi is 0
    decays:   ended, or usable with slope < 0
    """

    beta: Float[Array, ""]
    interval: Float[Array, " 2"]
    slope: Float[Array, ""]
    anchor: Float[Array, ""]
    usable: Bool[Array, ""]
    ended: Bool[Array, ""]
    decays: Bool[Array, ""]


def fit_tail(phi: Float[Array, " lags"], tau: int, level: float) -> TailFit:
    """Fit log phi_k = a + b k by least squares over the lags k >= tau with phi_k > 0.

    The interval of b is Student's, at confidence `level`. With fewer than three such lags there is
    no interval: beta is NaN, its interval (0, inf), and the slope inf. If all of the tail is 0,
    beta is exactly 0. For any phi, only beta can be NaN.
    """
    from scipy.special import stdtrit  # imported here: importing scipy.special takes a second

    lags = phi.shape[0]
    usable = jnp.all(jnp.isfinite(phi) & (phi >= 0))
    k = jnp.arange(1, lags + 1, dtype=phi.dtype)
    fitted = (k >= tau) & (phi > 0) & jnp.isfinite(phi)
    logs = jnp.log(jnp.where(fitted, phi, 1))
    n = jnp.sum(fitted)
    number = jnp.maximum(n, 1).astype(phi.dtype)
    x = jnp.where(fitted, k - jnp.sum(k * fitted) / number, 0)
    y = jnp.where(fitted, logs - jnp.sum(logs) / number, 0)
    spread = jnp.where(n >= 2, jnp.sum(x * x), 1)
    b = jnp.sum(x * y) / spread
    freedom = jnp.maximum(n - 2, 1).astype(phi.dtype)
    error = jnp.sqrt(jnp.sum(jnp.square(y - b * x)) / freedom / spread)
    degrees = np.maximum(np.arange(lags + 1) - 2, 1)
    quantiles = np.nan_to_num(stdtrit(degrees, (1 + level) / 2))
    half = jnp.asarray(quantiles, phi.dtype)[n] * error
    has_interval, is_zero = usable & (n >= 3), usable & (n == 0)
    high = jnp.where(has_interval, b + half, jnp.where(is_zero, -jnp.inf, jnp.inf))
    low = jnp.where(has_interval, b - half, -jnp.inf)
    ended = usable & (phi[-1] == 0)
    slope = jnp.where(jnp.isfinite(high), high, 0)
    beta = jnp.where(has_interval, jnp.exp(b), jnp.where(is_zero, 0, jnp.nan))
    return TailFit(
        beta=beta.astype(phi.dtype),
        interval=jnp.exp(jnp.stack([low, high])),
        slope=high,
        anchor=jnp.max(jnp.where(fitted, logs - slope * (k - tau), -jnp.inf)),
        usable=usable,
        ended=ended,
        decays=ended | (has_interval & (high < 0)),
    )
