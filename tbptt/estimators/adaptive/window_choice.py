"""Which window is long enough: from gradient norms by lag, a bound on what a window leaves out, tail included."""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from tbptt.estimators.adaptive.choice import WindowChoice, explain_choice
from tbptt.estimators.adaptive.tail_fit import TailFit, fit_tail
from tbptt.windows import check_window


def choose_window(
    phi: Float[ArrayLike, " lags"],
    windows: Sequence[int],
    delta: float,
    tau: int,
    *,
    k1: int = 1,
    level: float = 0.95,
    scale: Float[ArrayLike, ""] | None = None,
) -> WindowChoice:
    """Chooses the smallest window whose bound on its relative bias is below delta; if there is none, the largest.

        R(n)    = sum_{n <= k <= tau} phi_k  +  A beta^(max(n, tau + 1) - tau) / (1 - beta)     left out after n steps
        B(k2)   = mean of R(n) over n = k2 - k1 + 1 .. k2                                      each new loss has its own n
        rel(k2) = B(k2) / (G - B(k2)),    G = max_K ||g_K|| / M

    phi_k = E ||d L_s / d carry_{s-k}||. Of log phi over the lags k >= tau a line is fitted; beta is the UPPER end of its
    slope's interval, and A = max_{k >= tau} phi_k beta^(tau - k), which is phi_tau where the tail stays below the line
    through it. So no lag that was measured counts less than it measured. All sums are taken of logarithms.

    beta >= 1, or unknown: nothing bounds what is left out, so the largest window is chosen and `decays` is False. phi with
    NaN, inf or a negative number: likewise. phi of the last lag 0: nothing arrives from there, so nothing does from further
    back; R is the plain sum. A window k2 < k1 leaves some losses out altogether, which no phi bounds: inf.

    Theorem 1 of the paper: ||E g_K - g|| <= M sum_k phi_k over the lags left out, M >= ||d carry_t / d params|| of one
    step. `scale` is G, what the largest gradient is in units of M. Without it G = sum_k phi_k of the lags measured: as if
    all lags' contributions pointed the same way; where they cancel, that is too large and rel too small.

    Args:
      phi: `[lags]`, lag 1 first, as `gradient_by_lag` gives them.
      windows: static, strictly increasing ints >= 1: k2s.
      delta: static, 0 < delta < 1.
      tau: static, first lag of the tail, 1 <= tau <= lags - 2 (an interval takes three points).
      k1: static, losses per window.
      level: static, of the interval, 0 < level < 1, by Student's t. Errors of neighbouring lags are alike, so it is
        narrower than its name.
      scale: scalar; None = the sum of phi.

    Returns:
      A `WindowChoice`. Works inside jit; outside, a choice that is not `enough` also warns in words (`explain_choice`).

    Raises:
      TypeError, ValueError: windows, delta, tau, k1 or level is not as above; phi is not one-dimensional.

    References: Aicher, Foti and Fox, *Adaptively truncating backpropagation through time to control gradient bias*,
    UAI 2019, arXiv:1905.07473.
    """
    phi = jnp.asarray(phi)
    phi = phi.astype(jnp.promote_types(phi.dtype, jnp.float32))
    windows, k1 = check_windows(windows), check_window("k1", k1)
    check_choice(delta, tau, level, phi.shape)
    fit = fit_tail(phi, tau, level)
    bounds = _log_bounds(phi, windows, k1, tau, fit)
    log_scale = jnp.log(jnp.sum(phi) if scale is None else jnp.asarray(scale, phi.dtype))
    relative = _relative(bounds, log_scale)
    good = fit.decays & (relative < delta)
    enough = jnp.any(good)
    choice = WindowChoice(
        chosen=jnp.where(enough, jnp.argmax(good), len(windows) - 1).astype(jnp.int32),
        beta=fit.beta,
        interval=fit.interval,
        absolute=jnp.exp(bounds),
        relative=relative,
        decays=fit.decays,
        enough=enough,
    )
    if not isinstance(enough, Tracer) and not enough:
        warnings.warn(explain_choice(choice, windows, delta).removeprefix("warning: "), stacklevel=2)
    return choice


def _log_bounds(phi: Array, windows: tuple[int, ...], k1: int, tau: int, fit: TailFit) -> Float[Array, " m"]:
    """log B of every window."""
    lags = phi.shape[0]
    logs = jnp.log(jnp.where(fit.usable, phi, 0))
    until_tau = jax.lax.cumlogsumexp(jnp.where(jnp.arange(lags) < tau, logs, -jnp.inf), reverse=True)
    all_of_it = jax.lax.cumlogsumexp(logs, reverse=True)
    n = np.asarray(windows)[:, None] - k1 + 1 + np.arange(k1)  # [m, k1], the steps that each new loss looks back
    at, is_measured = np.clip(n, 1, lags) - 1, n <= lags
    slope = jnp.where(fit.slope < 0, fit.slope, -1)
    tail = fit.anchor + slope * (np.maximum(n, tau + 1) - tau) - jnp.log(-jnp.expm1(slope))
    geometric = jnp.logaddexp(until_tau[at], tail)  # until_tau is 0 beyond tau
    left = jnp.where(fit.ended, jnp.where(is_measured, all_of_it[at], -jnp.inf), geometric)
    left = jnp.where((n >= 1) & fit.decays, left, jnp.inf)
    return jax.nn.logsumexp(left, axis=1) - np.log(k1).astype(phi.dtype)


def _relative(bounds: Array, log_scale: Array) -> Array:
    """B / (G - B) = 1 / (G / B - 1): 0 if nothing is left out, inf if G is not above B (or is NaN)."""
    apart = log_scale - jnp.where(jnp.isneginf(bounds), 0, bounds)
    above = jnp.where(apart > 0, 1 / jnp.expm1(jnp.where(apart > 0, apart, 1)), jnp.inf)
    return jnp.where(jnp.isneginf(bounds), 0, above)


def check_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """Returns the windows as a tuple of ints; raises if they are not strictly increasing ints >= 1."""
    checked = tuple(check_window(f"windows[{i}]", k2) for i, k2 in enumerate(windows))
    if not checked or any(a >= b for a, b in zip(checked[:-1], checked[1:], strict=True)):
        raise ValueError(f"windows must be strictly increasing, at least one; got {tuple(windows)}")
    return checked


def check_choice(delta: float, tau: int, level: float, shape: tuple[int, ...]) -> None:
    """Raises a ValueError (TypeError: tau) that names the argument of `choose_window` that is not as it says."""
    if len(shape) != 1:
        raise ValueError(f"phi must be [lags], one norm a lag; got shape {shape}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be a relative bias between 0 and 1 (beyond 1 descent is not sure); got {delta}")
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability between 0 and 1; got level={level}")
    if check_window("tau", tau) > shape[0] - 2:
        raise ValueError(
            f"tau must be at most lags - 2, so that three lags are left to fit; got tau={tau}, lags={shape[0]}. Choose a "
            "smaller tau, or measure more lags"
        )
