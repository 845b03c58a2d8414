"""Compute Lyapunov exponents of a cell or a map, and the memory horizon that they predict."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from tbptt.diagnostics._recurrence import flat_map, flat_recurrence, step_and_jvp
from tbptt.diagnostics.lag import LagProfile
from tbptt.types import Carry, Cell, Params
from tbptt.windows import check_positive_int


class Lyapunov(NamedTuple):
    """Lyapunov exponents in nats per step, n of them, over S = T - warmup counted steps.

    exponents:      `[n]`, in the order of the QR: descending, except where not converged
    standard_error: `[n]`, of the mean over time, by batch means; NaN where S < 4 or the exponent
                    is not finite
    running:        `[S, n]`, the estimates after 1 .. S counted steps; the last row is
                    `exponents`
    log_det_mean:   scalar, the mean of log|det J_t|, from an LU: the sum of all N exponents; NaN
                    if n < N
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
    """Compute the mean growth rates of small perturbations of the carry along a sequence.

        q_t r_t = J_t q_{t-1},    J_t = d carry_t / d carry_{t-1}
        exponents = mean over t of log|diag r_t|

    q_{-1} has fixed random orthonormal columns. The first `warmup` steps align them (and let the
    carry forget its start) without being counted; without warm-up the exponents err by O(1 / S).
    Exponents that are equal in pairs (complex eigenvalues) err even with it: their two directions
    keep rotating, so each errs by about 0.2 to 0.6 nats / S, while their sum does not, and the
    standard error may not show it. One scan; a step costs `count` jvps and a QR. At a singular J,
    some r_ii is 0 and its exponent is -inf from then on. Where the zero is not exact, the log of a
    rounding error, near log eps, enters the mean instead. NaN parameters give NaN.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all.
      xs: `[T, D]`, the inputs of interest, warm-up included; zeros for the autonomous network.
      count: static, 1 .. N: number of exponents, from the largest; None = all N. It does not
        change their values.
      warmup: static, 0 .. T - 1.

    Returns:
      a Lyapunov.

    Raises:
      TypeError: cell is a plain function; count or warmup is not an int; else as step_jacobians.
      ValueError: count > N, warmup < 0 or >= T; else as step_jacobians.

    References: Benettin et al., Meccanica 15, 1980; for recurrent networks Engelken, Wolf and
    Abbott 2023, arXiv:2006.02427, and Vogt et al. 2020, arXiv:2006.14123.
    """
    if not hasattr(cell, "input_dim"):
        raise TypeError(
            f"cell must be a cell with input_dim; got {cell!r}. For a map carry -> carry without "
            "inputs use map_lyapunov_spectrum(function, carry, steps)"
        )
    start, step, xs = flat_recurrence(cell, params, carry, xs)
    return _spectrum(start, step, xs, count, warmup)


def map_lyapunov_spectrum(
    function: Callable[[Carry], Carry],
    carry: Carry,
    steps: int,
    *,
    count: int | None = None,
    warmup: int = 0,
) -> Lyapunov:
    """Compute the Lyapunov exponents of a map without inputs and parameters.

        carry_t = function(carry_{t-1}),    exponents as in lyapunov_spectrum

    The logistic map at r = 4 has the exponent log 2 = 0.693:

        map_lyapunov_spectrum(lambda x: 4 * x * (1 - x), jnp.asarray(0.3), 10_000).exponents

    The Henon map has 0.419 and -1.623, whose sum is log 0.3 at every step:

        def henon(carry):
            x, y = carry
            return 1 - 1.4 * x**2 + y, 0.3 * x

        map_lyapunov_spectrum(henon, (jnp.asarray(0.1), jnp.asarray(0.1)), 10_000, warmup=100)

    Args:
      function: static, `carry -> carry`; shapes and dtypes stay the same.
      carry: enters step 0, floating leaves, N numbers in all.
      steps: static, T, number of steps, warm-up included.
      count: static, as for lyapunov_spectrum.
      warmup: static, as for lyapunov_spectrum.

    Returns:
      a Lyapunov.

    Raises:
      TypeError: function is not callable, or has a custom backward pass; steps, count or warmup
        is not an int; a leaf of the carry is not floating.
      ValueError: steps < 1, count > N, warmup < 0 or >= steps; the function returns a carry of
        another structure or shape.
    """
    steps = check_positive_int("steps", steps)
    start, step = flat_map(function, carry)
    return _spectrum(start, step, jnp.zeros((steps, 0), start.dtype), count, warmup)


def _spectrum(
    start: Float[Array, " N"],
    step: Callable[[Any, Any], Array],
    xs: Array,
    count: Any,
    warmup: Any,
) -> Lyapunov:
    count = start.size if count is None else check_positive_int("count", count)
    if count > start.size:
        raise ValueError(
            f"count must be at most the {start.size} numbers of the carry; got count={count}"
        )
    if isinstance(warmup, bool) or not isinstance(warmup, int):
        raise TypeError(f"warmup must be a Python int, a number of steps; got {warmup!r}")
    if not 0 <= warmup < xs.shape[0]:
        raise ValueError(
            "warmup must be 0 or more and leave at least one of T steps to count; got "
            f"warmup={warmup}, T={xs.shape[0]}"
        )

    def body(
        state: tuple[Array, Array], x: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        vector, product = step_and_jvp(step, state[0], x, state[1])
        q, r = jnp.linalg.qr(product)
        log_det = jnp.full((), jnp.nan, r.dtype)
        if count == start.size:  # q is orthogonal, so |det J q| = |det J|, by another factorisation
            log_det = jnp.linalg.slogdet(product)[1]
        return (vector, q), (jnp.log(jnp.abs(jnp.diagonal(r))), log_det)

    columns = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(count))
    drawn = jax.vmap(lambda k: jax.random.normal(k, start.shape, start.dtype), out_axes=1)(columns)
    state, _ = jax.lax.scan(body, (start, jnp.linalg.qr(drawn)[0]), xs[:warmup])
    _, (logs, log_dets) = jax.lax.scan(body, state, xs[warmup:])
    running = jnp.cumsum(logs, axis=0) / jnp.arange(1, logs.shape[0] + 1, dtype=logs.dtype)[:, None]
    return Lyapunov(running[-1], _batch_means_error(logs), running, jnp.mean(log_dets))


def memory_horizon(exponents: Float[ArrayLike, "*n"], delta: float) -> Float[Array, ""]:
    """Predict the lag at which the influence exp(rate k) has decayed to delta.

        horizon = log(delta) / rate,    rate = the largest of `exponents`;    inf if rate >= 0

    An exponent is a mean of logarithms: it predicts the typical (median) gradient. The mean
    gradient, to which a few large ones contribute most, decays later.

    Args:
      exponents: any number of Lyapunov exponents, or one rate (a slope of a log profile), in nats
        per step.
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
    """Return the lag at which the mean gradient norm has decayed to delta of its value at lag 1.

        horizon = min { j : mean[i] <= delta mean[0] for all i >= j },    mean[j] at lag j + 1

    counted from lag 1, so that a pure exp(rate k) gives memory_horizon(rate, delta) rounded up. A
    mean that is inf never decays. If mean[0] is inf, the dtype's largest number takes its place,
    and the horizon is a lower bound. For another statistic, such as the median, put it in the place
    of the mean: `profile._replace(mean=...)`.

    Args:
      profile: from lag_profile.
      delta: static, 0 < delta < 1.

    Returns:
      a pytree like the carry, leaves scalars, in steps: inf if it has not decayed within the lags
      of the profile, 0 for a profile of zeros, NaN if the mean holds a NaN.

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
    """Estimate the standard error of a mean over correlated steps from means of batches.

    There are sqrt(S) batches of sqrt(S) steps, from the newest steps.
    """
    batches = math.isqrt(logs.shape[0])
    if batches < 2:
        return jnp.full(logs.shape[1:], jnp.nan, logs.dtype)
    size = logs.shape[0] // batches
    means = jnp.mean(logs[-batches * size :].reshape(batches, size, -1), axis=1)
    return jnp.std(means, axis=0, ddof=1) / math.sqrt(batches)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be a fraction between 0 and 1, for example 0.01; got {delta}")
