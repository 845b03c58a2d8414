"""The choice of a window from gradient norms by lag, by a bound on its relative bias.

The bound extends the norms beyond the last lag by a geometric decay, fitted as a line through
their logarithms.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from tbptt.windows import check_positive_int


class WindowChoice(NamedTuple):
    """The result of `choose_window`, for m windows.

    chosen:   scalar, the index of the chosen window
    beta:     scalar, the factor of phi from lag to lag in the tail; NaN if too few lags are above 0
    interval: `[2]`, the confidence interval of beta; (0, inf) if there is none
    absolute: `[m]`, bound on what each window leaves out, in the unit of phi; inf if there is none
    relative: `[m]`, bound on the relative bias of each window; inf if there is none
    decays:   scalar, whether what is left out has a finite sum: the upper end of the interval of
      beta is below 1, or the last phi is 0
    enough:   scalar, whether the relative bias of the chosen window is below delta; if False, the
      chosen window is the largest
    """

    chosen: Int[Array, ""]
    beta: Float[Array, ""]
    interval: Float[Array, " 2"]
    absolute: Float[Array, " m"]
    relative: Float[Array, " m"]
    decays: Bool[Array, ""]
    enough: Bool[Array, ""]


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
    windows, k1 = check_positive_ints(windows), check_positive_int("k1", k1)
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


def explain_choice(choice: WindowChoice, windows: Sequence[int], delta: float) -> str:
    """Return a sentence that names the chosen window and the reason.

    It begins with "warning: " if no window has a bound below delta.

    Args:
      choice: the result of `choose_window`, or the `choice` of an `AdaptiveInfo`; outside of jit.
      windows, delta: the arguments of that call.
    """
    index = int(choice.chosen)
    k2, bound = windows[index], float(choice.relative[index])
    low, high = (float(end) for end in np.asarray(choice.interval))
    decay = f"beta {float(choice.beta):.4g}, interval {low:.4g} .. {high:.4g}"
    if choice.enough:
        return (
            f"k2 = {k2}: its relative bias is at most {bound:.2g}, below delta = {delta:g} "
            f"({decay})"
        )
    if not choice.decays:
        return (
            f"warning: gradients do not surely decay with the lag ({decay}), so there is no bound "
            f"on the bias of any window; k2 = {k2} is the largest"
        )
    return (
        f"warning: no window is long enough: k2 = {k2}, the largest, has a relative bias of at "
        f"most {bound:.2g}, not below delta = {delta:g} ({decay})"
    )


def check_positive_ints(windows: Sequence[int]) -> tuple[int, ...]:
    """Return the windows as a tuple of ints; raise unless they are strictly increasing and >= 1."""
    checked = tuple(check_positive_int(f"windows[{i}]", k2) for i, k2 in enumerate(windows))
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
    if check_positive_int("tau", tau) > shape[0] - 2:
        raise ValueError(
            "tau must be at most lags - 2, so that at least three lags are fitted; got "
            f"tau={tau}, lags={shape[0]}. Choose a smaller tau, or measure more lags"
        )


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
