"""Lyapunov exponents of a cell on its own inputs, and the memory horizon that they predict."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from tbptt.diagnostics.carries import one_sequence, push
from tbptt.diagnostics.lag import LagProfile
from tbptt.types import Carry, Cell, Params
from tbptt.windows import check_window


class Lyapunov(NamedTuple):
    """Exponents in nats a step, n of them, over S = T - warmup counted steps.

    exponents:      `[n]`, in the order that QR finds them: the largest first, but for what has not converged
    standard_error: `[n]`, of the mean over time, by batch means; NaN where S < 4 or the exponent is not finite
    running:        `[S, n]`, the estimates after 1 .. S counted steps; the last row is `exponents`
    log_det_mean:   scalar, the mean of log|det J_t|, from an LU: what all N exponents must add up to; NaN if n < N
    """

    exponents: Float[Array, " n"]
    standard_error: Float[Array, " n"]
    running: Float[Array, "S n"]
    log_det_mean: Float[Array, ""]


def lyapunov_spectrum(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T D"],
    *,
    count: int | None = None,
    warmup: int = 0,
) -> Lyapunov:
    """Computes the mean rates at which small changes of the carry grow or die along this sequence.

        q_t r_t = J_t q_{t-1},    J_t = d carry_t / d carry_{t-1}
        exponents = mean over t of log|diag r_t|

    q_{-1} is a fixed random orthonormal frame. The first `warmup` steps turn it into the right directions (and let the
    carry forget its start) without being counted; without them the exponents err by O(1 / S). With them too where they
    are equal in pairs (complex eigenvalues): the two directions turn round each other for ever, and each of the two
    exponents errs by about 0.2 to 0.6 nats / S, their sum does not; the standard error may not show it. One scan: a step
    costs `count` jvps and a QR. At a singular J some r_ii is 0 and its exponent -inf from then on (where the zero is not
    exact, the log of a rounding error, near log eps, enters the mean instead). NaN parameters give NaN.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all.
      xs: `[T, D]`, the user's own inputs, warm-up included; zeros for the autonomous network.
      count: static, 1 .. N: how many exponents, from the largest; None = all N. It changes none of their values.
      warmup: static, 0 .. T - 1.

    Returns:
      a Lyapunov.

    Raises:
      TypeError: count or warmup is not an int; else as step_jacobians.
      ValueError: count > N, warmup < 0 or >= T; else as step_jacobians.

    References: Benettin et al., Meccanica 15, 1980; for recurrent networks Engelken, Wolf and Abbott 2023,
    arXiv:2006.02427, and Vogt et al. 2020, arXiv:2006.14123.
    """
    start, step, xs = one_sequence(cell, params, carry, xs)
    count = start.size if count is None else check_window("count", count)
    if count > start.size:
        raise ValueError(f"count must be at most the {start.size} numbers of the carry; got count={count}")
    if isinstance(warmup, bool) or not isinstance(warmup, int):
        raise TypeError(f"warmup must be a Python int, a number of steps; got {warmup!r}")
    if not 0 <= warmup < xs.shape[0]:
        raise ValueError(
            f"warmup must be 0 or more and leave at least one of T steps to count; got warmup={warmup}, T={xs.shape[0]}"
        )

    def body(state: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        vector, pushed = push(step, state[0], x, state[1])
        q, r = jnp.linalg.qr(pushed)
        # J q is J turned: the same |det|, by another factorisation.
        log_det = jnp.linalg.slogdet(pushed)[1] if count == start.size else jnp.full((), jnp.nan, r.dtype)
        return (vector, q), (jnp.log(jnp.abs(jnp.diagonal(r))), log_det)

    columns = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(count))
    drawn = jax.vmap(lambda k: jax.random.normal(k, start.shape, start.dtype), out_axes=1)(columns)
    state, _ = jax.lax.scan(body, (start, jnp.linalg.qr(drawn)[0]), xs[:warmup])
    _, (logs, log_dets) = jax.lax.scan(body, state, xs[warmup:])
    running = jnp.cumsum(logs, axis=0) / jnp.arange(1, logs.shape[0] + 1, dtype=logs.dtype)[:, None]
    return Lyapunov(running[-1], _batch_means_error(logs), running, jnp.mean(log_dets))


def memory_horizon(exponents: Float[ArrayLike, "*n"], delta: float) -> Float[Array, ""]:
    """Predicts the lag at which influence exp(rate k) has fallen to delta.

        horizon = log(delta) / rate,    rate = the largest of `exponents`;    inf if rate >= 0

    Args:
      exponents: any number of Lyapunov exponents, or one rate (a slope of a log profile), in nats a step.
      delta: static, 0 < delta < 1.

    Returns:
      a scalar, in steps, not rounded; 0 for a rate of -inf, NaN for NaN.

    Raises:
      ValueError: delta is not between 0 and 1; no exponents.
    """
    _check_delta(delta)
    if np.size(exponents) == 0:
        raise ValueError("memory_horizon needs at least one exponent; got none")
    rate = jnp.max(jnp.asarray(exponents, jnp.result_type(float)))
    return jnp.where(rate >= 0, jnp.inf, math.log(delta) / jnp.where(rate >= 0, -1, rate))


def measured_horizon(profile: LagProfile, delta: float) -> Any:
    """Reads off the lag at which the mean gradient norm has fallen to delta of its value at lag 1, for good.

        horizon = min { j : mean[i] <= delta mean[0] for all i >= j },    mean[j] at lag j + 1

    counted from lag 1, so that a pure exp(rate k) gives memory_horizon(rate, delta) rounded up. A mean that is inf is
    never forgotten; if mean[0] is, it is taken as the dtype's largest number, and the horizon is at least the one given.

    Args:
      profile: from lag_profile.
      delta: static, 0 < delta < 1.

    Returns:
      a pytree like the carry, leaves scalars, in steps: inf if it has not fallen within the profile's lags, 0 for a
      profile of zeros, NaN if the mean holds a NaN.

    Raises:
      ValueError: delta is not between 0 and 1.
    """
    _check_delta(delta)

    def horizon(mean: Array) -> Array:
        lags = mean.shape[0]
        first = jnp.minimum(mean[0], jnp.finfo(mean.dtype).max)  # inf > delta inf is false
        above = mean > delta * first
        steps = jnp.max(jnp.where(above, jnp.arange(lags) + 1, 0))
        steps = jnp.where(steps == lags, jnp.inf, steps).astype(mean.dtype)
        return jnp.where(jnp.any(jnp.isnan(mean)), jnp.nan, steps)

    return jax.tree.map(horizon, profile.mean)


def _batch_means_error(logs: Float[Array, "S n"]) -> Float[Array, " n"]:
    """Estimates the standard error of a mean over correlated steps: sqrt(S) stretches of sqrt(S) steps, the newest."""
    batches = math.isqrt(logs.shape[0])
    if batches < 2:
        return jnp.full(logs.shape[1:], jnp.nan, logs.dtype)
    size = logs.shape[0] // batches
    means = jnp.mean(logs[-batches * size :].reshape(batches, size, -1), axis=1)
    return jnp.std(means, axis=0, ddof=1) / math.sqrt(batches)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be a share between 0 and 1 (what counts as forgotten, as 0.01); got {delta}")
