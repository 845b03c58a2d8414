"""The choice of a window from gradient norms by lag, by a bound on its relative bias."""

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
    """Choose the smallest window whose bound on the relative bias is below delta.

        R(n)    = sum_{n <= k <= tau} phi_k  +  A beta^(max(n, tau + 1) - tau) / (1 - beta)
        B(k2)   = mean of R(n) over n = k2 - k1 + 1 .. k2
        rel(k2) = B(k2) / (G - B(k2)),    G = max_K ||g_K|| / M

    If there is no such window, the largest is chosen. R(n) bounds what is left out after n steps;
    each of the k1 new losses of a window has its own n. phi_k = E ||d L_s / d carry_{s-k}||.

    A line is fitted to log phi over the lags k >= tau. beta is the UPPER end of the interval of its
    slope, and A = max_{k >= tau} phi_k beta^(tau - k), which is phi_tau if the tail stays below the
    line through it. So the bound is never below what was measured. All sums are computed in
    logarithms. Special cases:

    - beta >= 1 or unknown, or phi with NaN, inf or a negative number: there is no bound. The
      largest window is chosen and `decays` is False.
    - phi of the last lag is 0: no gradient arrives from there or from further back, and R is the
      plain sum.
    - k2 < k1: such a window ignores some losses altogether, and its bound is inf.

    Theorem 1 of the paper states ||E g_K - g|| <= M sum_k phi_k over the lags that are left out,
    with M >= ||d carry_t / d params|| of one step. `scale` is G, the largest gradient norm in units
    of M. Its default is sum_k phi_k over the measured lags, as if the contributions of all lags had
    the same direction; if they cancel, this G is too large and rel too small.

    Args:
      phi: `[lags]`, gradient norms, lag 1 first, as `gradient_by_lag` returns them.
      windows: static; strictly increasing ints >= 1, the candidate k2s, in steps.
      delta: static; the relative bias to stay below, 0 < delta < 1.
      tau: static; first lag of the tail, 1 <= tau <= lags - 2 (an interval needs three points).
      k1: static; stride, in steps: the number of new losses per window.
      level: static; confidence level of the interval (Student's t), 0 < level < 1. The errors of
        neighbouring lags are correlated, so the true level is lower.
      scale: scalar, in the unit of phi; None = the sum of phi.

    Returns:
      A `WindowChoice`. The function works inside jit. Outside of jit it also issues a warning
      (`explain_choice`) if the choice is not `enough`.

    Raises:
      TypeError, ValueError: windows, delta, tau, k1 or level is not as above; phi is not
        one-dimensional.

    References: Aicher, Foti and Fox, *Adaptively truncating backpropagation through time to control
    gradient bias*, UAI 2019, arXiv:1905.07473.
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
        warnings.warn(
            explain_choice(choice, windows, delta).removeprefix("warning: "), stacklevel=2
        )
    return choice


def _log_bounds(
    phi: Array, windows: tuple[int, ...], k1: int, tau: int, fit: TailFit
) -> Float[Array, " m"]:
    """Return log B of every window."""
    lags = phi.shape[0]
    logs = jnp.log(jnp.where(fit.usable, phi, 0))
    until_tau = jax.lax.cumlogsumexp(
        jnp.where(jnp.arange(lags) < tau, logs, -jnp.inf), reverse=True
    )
    until_end = jax.lax.cumlogsumexp(logs, reverse=True)
    n = (
        np.asarray(windows)[:, None] - k1 + 1 + np.arange(k1)
    )  # [m, k1], steps back of each new loss
    index, is_measured = np.clip(n, 1, lags) - 1, n <= lags
    slope = jnp.where(fit.slope < 0, fit.slope, -1)
    tail = fit.anchor + slope * (np.maximum(n, tau + 1) - tau) - jnp.log(-jnp.expm1(slope))
    geometric = jnp.logaddexp(until_tau[index], tail)  # until_tau is log 0 beyond tau
    plain = jnp.where(is_measured, until_end[index], -jnp.inf)
    log_r = jnp.where(fit.ended, plain, geometric)
    log_r = jnp.where((n >= 1) & fit.decays, log_r, jnp.inf)
    return jax.nn.logsumexp(log_r, axis=1) - np.log(k1).astype(phi.dtype)


def _relative(bounds: Array, log_scale: Array) -> Array:
    """Return B / (G - B) = 1 / (G / B - 1).

    It is 0 if nothing is left out (B = 0), and inf if G is not above B or is NaN.
    """
    log_ratio = log_scale - jnp.where(jnp.isneginf(bounds), 0, bounds)
    is_above = log_ratio > 0
    ratio = jnp.where(is_above, 1 / jnp.expm1(jnp.where(is_above, log_ratio, 1)), jnp.inf)
    return jnp.where(jnp.isneginf(bounds), 0, ratio)


def check_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """Return the windows as a tuple of ints; raise unless they are strictly increasing and >= 1."""
    checked = tuple(check_window(f"windows[{i}]", k2) for i, k2 in enumerate(windows))
    if not checked or any(a >= b for a, b in zip(checked[:-1], checked[1:], strict=True)):
        raise ValueError(
            f"windows must be strictly increasing ints, at least one; got {tuple(windows)}"
        )
    return checked


def check_choice(delta: float, tau: int, level: float, shape: tuple[int, ...]) -> None:
    """Check the arguments of `choose_window`.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
    """
    if len(shape) != 1:
        raise ValueError(f"phi must be [lags], one norm per lag; got shape {shape}")
    if not 0 < delta < 1:
        raise ValueError(
            "delta must be a relative bias between 0 and 1 (above 1 a step need not descend); "
            f"got {delta}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability between 0 and 1; got level={level}")
    if check_window("tau", tau) > shape[0] - 2:
        raise ValueError(
            "tau must be at most lags - 2, so that at least three lags are fitted; got "
            f"tau={tau}, lags={shape[0]}. Choose a smaller tau, or measure more lags"
        )
