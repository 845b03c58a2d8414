"""Truncated BPTT that chooses its own window, so that the bias of its gradient stays below a tolerance."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tbptt.estimators._accumulate import checked_loss
from tbptt.estimators.adaptive.choice import WindowChoice
from tbptt.estimators.adaptive.decay import Decay, choose, init_decay, remeasured, unknown
from tbptt.estimators.adaptive.replay import Trail, advance, init_trail, memory_of, past_of
from tbptt.estimators.adaptive.types import AdaptiveInfo, AdaptiveMemory, Settings
from tbptt.estimators.adaptive.window_choice import check_choice, check_windows
from tbptt.estimators.truncated import truncated_bptt
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_window, cut


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
    """Truncates with TBPTT(k1, k2), k2 the smallest of `windows` whose bound on its relative bias is below delta.

        k2 = windows[choice.chosen]                                                  # as a plain loop: one call
        gradient = truncated_bptt(loss_fn, k1, k2).estimate(params, its memory, batch)
        if at least `lags + losses - 1` steps are remembered and `every` calls have passed since the last estimate:
            phi, parts, largest = running means of measure_by_lag(newest steps)      # a reverse sweep, one step at a time
            choice = choose_window(phi, windows, delta, tau, k1=k1, scale=largest / max(parts / phi))

    The rule is `choose_window`'s. What stands for the paper's terms: M = max_k ||c_k|| / phi_k, where c_k is what the step
    k lags back contributes to the gradient (so M phi_k is never below what is really left out), and max_K ||g_K|| is the
    largest norm of the gradient of the newest losses over K <= lags steps. Both are measured by the same sweep.

    A call's window was chosen before its batch was seen, so that the choice cannot lean on the noise of that gradient.
    Until the first estimate, and wherever nothing bounds the bias (beta not surely below 1, phi not finite), the window is
    the largest; `info` says so. The bound holds as far as phi decays geometrically beyond the lags measured. All windows
    are branches of one program, of which one is run (under vmap, all); nothing is compiled again.

    For every window longer than k1 a carry of its own is remembered and moved on, besides the steps of the longest. So each
    call is exactly what TBPTT(k1, k2) would do had it been fed from the start with the same parameters. Moving them on
    costs T steps forward a call for each window and one for the estimate; an estimate costs about as much as a gradient
    through `lags` steps, taken one step at a time, for `losses` lanes.

    Args:
      loss_fn: any `LossFn` that can be vmapped (for the estimate, over the losses that it follows).
      k1: stride, steps between windows; static int >= 1; must divide T.
      windows: static, strictly increasing ints >= 1, the k2s to choose from. A k2 < k1 has no bound on its bias and is
        taken only where it is the largest.
      delta: static; the relative bias to stay below, 0 < delta < 1.
      lags: static int >= 3; how far back to measure; None = the largest window, at least 4.
      tau: static int, 1 .. lags - 2; the lag from which phi is taken to decay geometrically; None = lags // 2.
      losses: static int >= 1; an estimate follows the losses of so many newest steps.
      every: static int >= 1; calls between estimates.
      smoothing: static, 0 <= smoothing < 1; weight of the old in the running means (0: the newest alone). The first
        estimates are weighted alike, until each weighs 1 - smoothing.
      level: static, 0 < level < 1; of the interval of beta.
      group: static; as in `truncated_bptt`.

    Returns:
      An `Estimator` whose memory is an `AdaptiveMemory` and whose info is an `AdaptiveInfo`.

    Raises:
      TypeError, ValueError: an argument is not as above; at `estimate`: T is not a multiple of k1.

    References: Aicher, Foti and Fox, *Adaptively truncating backpropagation through time to control gradient bias*,
    UAI 2019, arXiv:1905.07473.
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
        raise ValueError(f"smoothing must be in [0, 1), 0 for the newest estimate alone; got smoothing={smoothing}")
    return _estimator(checked_loss(loss_fn), settings)


def _estimator(loss_fn: LossFn, at: Settings) -> Estimator:
    branches = [_branch(loss_fn, at, k2) for k2 in at.windows]
    k2s = np.asarray(at.windows, np.int32)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        decay = init_decay(params, carry, at.lags)
        choice = unknown(decay, at.windows)
        return AdaptiveMemory(init_trail(carry, batch, at.olds), decay, choice, jnp.asarray(at.every, jnp.int32))

    def estimate(params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        del key
        cut(batch, at.k1)
        index = memory.choice.chosen
        loss, grads, window_info = jax.lax.switch(index, branches, params, memory.trail, batch)
        trail = advance(loss_fn, at.k1, at.olds, params, memory.trail, batch)
        since = jnp.minimum(memory.since + 1, at.every)
        due = (since == at.every) & (trail.age >= at.reach)

        def again() -> tuple[Decay, WindowChoice]:
            past = past_of(trail, at.olds, at.reach)
            decay = remeasured(loss_fn, params, past, memory.decay, at.lags, at.smoothing)
            return decay, choose(decay, at.windows, at.delta, at.tau, at.k1, at.level)

        decay, choice = jax.lax.cond(due, again, lambda: (memory.decay, memory.choice))
        since = jnp.where(due, 0, since)
        info = AdaptiveInfo(
            losses=window_info.losses,
            weights=window_info.weights,
            k2=jnp.asarray(k2s)[index],
            next_k2=jnp.asarray(k2s)[choice.chosen],
            choice=choice,
            phi=decay.phi,
            parts=decay.parts,
            largest=decay.largest,
            estimates=decay.estimates,
            measured=due,
            broken=decay.broken,
        )
        return Gradient(loss, grads, AdaptiveMemory(trail, decay, choice, since), info)

    return Estimator(init, estimate)


def _branch(loss_fn: LossFn, at: Settings, k2: int) -> Callable[[Params, Trail, Batch], tuple[Any, Params, Any]]:
    inner = truncated_bptt(loss_fn, at.k1, k2, group=at.group)

    def branch(params: Params, trail: Trail, batch: Batch) -> tuple[Any, Params, Any]:
        gradient = inner.estimate(params, memory_of(trail, at.olds, at.k1, k2), batch)
        return gradient.loss, gradient.grads, gradient.info

    return branch
