"""Adaptive TBPTT, which chooses its window so that the bias of the gradient stays below a bound."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tbptt.estimators._accumulate import checked_loss
from tbptt.estimators.adaptive.choice import WindowChoice
from tbptt.estimators.adaptive.decay import (
    Decay,
    choose,
    init_decay,
    largest_window,
    update_decay,
)
from tbptt.estimators.adaptive.replay import Replay, advance, init_replay, memory_of, past_of
from tbptt.estimators.adaptive.types import AdaptiveInfo, AdaptiveMemory, Settings
from tbptt.estimators.adaptive.window_choice import check_choice, check_windows
from tbptt.estimators.truncated import truncated_bptt
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_window, split_windows


def adaptive_bptt(
    loss_fn: LossFn,
    k1: int,
    windows: Sequence[int],
    delta: float,
    *,
    lags: int | None = None,
    tau: int | None = None,
    losses: int = 1,
    every: int = 1,
    smoothing: float = 0.9,
    level: float = 0.95,
    group: int = 1,
) -> Estimator:
    """Estimate the gradient by TBPTT(k1, k2) with an adaptive k2.

    k2 is the smallest of `windows` whose bound on the relative bias is below delta.

        k2 = windows[choice.chosen]                                     # one call as a plain loop
        gradient = truncated_bptt(loss_fn, k1, k2).estimate(params, memory of k2, batch)
        if `lags + losses - 1` steps are stored and the last estimate is `every` calls ago:
            phi, contributions, largest = running means of measure_by_lag(newest steps)
            scale = largest / max(contributions / phi)
            choice = choose_window(phi, windows, delta, tau, k1=k1, level=level, scale=scale)

    See `choose_window` for the rule. The terms of the paper are estimated as follows. M =
    max_k ||c_k|| / phi_k, where c_k is the contribution to the gradient of the step k lags back; so
    M phi_k is never below the true norm. max_K ||g_K|| is the largest norm of the gradient of the
    newest losses over K <= lags steps. One reverse sweep over single steps measures both.

    The window of a call is chosen before its batch is seen, so that it does not depend on the noise
    of that gradient. Before the first estimate, and if there is no bound (beta not surely below 1,
    phi not finite), the window is the largest; `info` reports this. The bound assumes that phi
    decays geometrically beyond the measured lags. All windows are branches of one compiled program,
    of which one runs (all under vmap); a change of window compiles nothing.

    The memory holds the steps of the longest window, and one carry for every window longer than k1.
    So each call equals TBPTT(k1, k2) fed from the start with the same parameters. To advance the
    carries costs T forward steps per call for each window, and T for the estimate. An estimate
    costs about one gradient through `lags` single steps, for `losses` times the batch rows.

    Args (all static):
      loss_fn: any `LossFn` that supports vmap (the estimate maps over the losses).
      k1: stride, in steps: the number of new steps per window, at least 1; must divide T.
      windows: the k2s to choose from, in steps; strictly increasing ints >= 1. A k2 < k1 has no
        bound on its bias and is used only if it is the largest.
      delta: the relative bias to stay below, 0 < delta < 1.
      lags: int >= 3, the number of lags to measure; None = the largest window, at least 4.
      tau: int, 1 .. lags - 2, the lag from which phi is assumed to decay geometrically; None =
        lags // 2.
      losses: int >= 1, the number of newest steps whose losses an estimate back-propagates.
      every: int >= 1, the number of calls between estimates.
      smoothing: 0 <= smoothing < 1, weight of the old value in the running means; 0 = the newest
        estimate only. The first estimates have equal weights, until each weighs 1 - smoothing.
      level: 0 < level < 1, the confidence level of the interval of beta.
      group: as in `truncated_bptt`.

    Returns:
      An `Estimator`. Its memory is an `AdaptiveMemory`, its info an `AdaptiveInfo`.

    Raises:
      TypeError, ValueError: an argument is not as above; at `estimate`: T is not a multiple of k1.

    References: Aicher, Foti and Fox, *Adaptively truncating backpropagation through time to control
    gradient bias*, UAI 2019, arXiv:1905.07473.
    """
    windows = check_windows(windows)
    lags = max(windows[-1], 4) if lags is None else check_window("lags", lags)
    settings = Settings(
        k1=check_window("k1", k1),
        windows=windows,
        delta=delta,
        lags=lags,
        tau=lags // 2 if tau is None else tau,
        losses=check_window("losses", losses),
        every=check_window("every", every),
        smoothing=smoothing,
        level=level,
        group=group,
    )
    check_choice(delta, settings.tau, level, (lags,))
    if not 0 <= smoothing < 1:
        raise ValueError(
            "smoothing must be in [0, 1), 0 for the newest estimate only; got "
            f"smoothing={smoothing}"
        )
    return _estimator(checked_loss(loss_fn), settings)


def _estimator(loss_fn: LossFn, at: Settings) -> Estimator:
    branches = [_branch(loss_fn, at, k2) for k2 in at.windows]
    k2s = np.asarray(at.windows, np.int32)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        decay = init_decay(params, carry, at.lags)
        return AdaptiveMemory(
            replay=init_replay(carry, batch, at.olds),
            decay=decay,
            choice=largest_window(decay, at.windows),
            calls_since_estimate=jnp.asarray(at.every, jnp.int32),
        )

    def estimate(
        params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        del key
        split_windows(batch, at.k1)  # raises an error if k1 does not divide T
        index = memory.choice.chosen
        loss, grads, window_info = jax.lax.switch(index, branches, params, memory.replay, batch)
        replay = advance(loss_fn, at.k1, at.olds, params, memory.replay, batch)
        calls = jnp.minimum(memory.calls_since_estimate + 1, at.every)
        is_due = (calls == at.every) & (replay.age >= at.estimate_steps)

        def measure() -> tuple[Decay, WindowChoice]:
            past = past_of(replay, at.olds, at.estimate_steps)
            decay = update_decay(loss_fn, params, past, memory.decay, at.lags, at.smoothing)
            return decay, choose(decay, at.windows, at.delta, at.tau, at.k1, at.level)

        decay, choice = jax.lax.cond(is_due, measure, lambda: (memory.decay, memory.choice))
        calls = jnp.where(is_due, 0, calls)
        info = AdaptiveInfo(
            losses=window_info.losses,
            weights=window_info.weights,
            k2=jnp.asarray(k2s)[index],
            next_k2=jnp.asarray(k2s)[choice.chosen],
            choice=choice,
            phi=decay.phi,
            contributions=decay.contributions,
            largest=decay.largest,
            estimates=decay.estimates,
            measured=is_due,
            non_finite=decay.non_finite,
        )
        return Gradient(loss, grads, AdaptiveMemory(replay, decay, choice, calls), info)

    return Estimator(init, estimate)


def _branch(
    loss_fn: LossFn, at: Settings, k2: int
) -> Callable[[Params, Replay, Batch], tuple[Any, Params, Any]]:
    inner = truncated_bptt(loss_fn, at.k1, k2, group=at.group)

    def branch(params: Params, replay: Replay, batch: Batch) -> tuple[Any, Params, Any]:
        gradient = inner.estimate(params, memory_of(replay, at.olds, at.k1, k2), batch)
        return gradient.loss, gradient.grads, gradient.info

    return branch
