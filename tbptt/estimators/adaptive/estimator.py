"""Adaptive TBPTT, which chooses its window so that the bias of the gradient stays below a bound.

`Replay` has the stored steps of a stream, shared by several windows, with one entering carry per
window:

    steps      0 .............. R - n_stored .............. R - 1 | new steps
    carries                     ^ the carry for `n_stored` enters here

The content for `n_stored = k2 - k1` is exactly the memory of TBPTT(k1, k2), fed from the start of
the stream with the same parameters. So any call can use another window. n_stored = 0 is the carry
that enters the new steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tbptt.estimators._common import checked_loss
from tbptt.estimators.adaptive.decay import Decay, choose, init_decay, largest_window, update_decay
from tbptt.estimators.adaptive.window_choice import WindowChoice, check_choice, check_positive_ints
from tbptt.estimators.truncated import Past, init_past, truncated_bptt
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_positive_int, length, split, split_windows, without_masked_values


class Replay(NamedTuple):
    """The stored steps of a stream.

    carries: one for each of `stored_lengths`, the carry that enters the step that many steps back
    steps:   `[max(stored_lengths), *batch, ...]`, the last steps, oldest first; the newest
      `n_valid` are valid
    n_valid: scalar, the number of valid steps
    """

    carries: tuple[Carry, ...]
    steps: Batch
    n_valid: Int[Array, ""]


class AdaptiveMemory(NamedTuple):
    """Memory of `adaptive_bptt`.

    replay: the steps and carries that every window and the next estimate need
    decay:  the running estimate of gradient norms by lag
    choice: the window of the next call, and the reason
    calls_since_estimate: scalar, the number of calls since the last estimate
    """

    replay: Replay
    decay: Decay
    choice: WindowChoice
    calls_since_estimate: Int[Array, ""]


class AdaptiveInfo(NamedTuple):
    """Info of one call of n windows.

    losses, weights: `[n]`, as in `WindowInfo`
    k2:       scalar, the window of THIS call
    next_k2:  scalar, the window of the next call
    choice:   the `WindowChoice` that gave next_k2; before the first estimate it is the largest
      window, with `decays` and `enough` False
    phi:      `[lags]`, the running estimate that the choice is based on, lag 1 first
    contributions: `[lags - 1]`, norms of the contributions to the gradient by lag, lag 1 first
    largest:  scalar, the largest norm of a gradient over K <= lags steps
    estimates: scalar, the number of estimates in these means; 0 = none yet
    measured: scalar, whether this call made an estimate
    non_finite: scalar, whether the newest estimate was not finite; it is then ignored, and the
      next window is the largest
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    k2: Int[Array, ""]
    next_k2: Int[Array, ""]
    choice: WindowChoice
    phi: Float[Array, " lags"]
    contributions: Float[Array, " contributions"]
    largest: Float[Array, ""]
    estimates: Int[Array, ""]
    measured: Bool[Array, ""]
    non_finite: Bool[Array, ""]


class Settings(NamedTuple):
    """The static arguments of `adaptive_bptt`."""

    k1: int
    windows: tuple[int, ...]
    delta: float
    lags: int
    tau: int
    losses: int
    every: int
    smoothing: float
    level: float
    group: int

    @property
    def stored_lengths(self) -> tuple[int, ...]:
        """Return how many steps back a carry is stored: for every window, and for the estimate."""
        windows = {max(k2 - self.k1, 0) for k2 in self.windows}
        return tuple(sorted(windows | {self.estimate_steps}))

    @property
    def estimate_steps(self) -> int:
        """Return the number of steps of one estimate."""
        return self.lags + self.losses - 1


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
    windows = check_positive_ints(windows)
    lags = max(windows[-1], 4) if lags is None else check_positive_int("lags", lags)
    settings = Settings(
        k1=check_positive_int("k1", k1),
        windows=windows,
        delta=delta,
        lags=lags,
        tau=lags // 2 if tau is None else tau,
        losses=check_positive_int("losses", losses),
        every=check_positive_int("every", every),
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
            replay=init_replay(carry, batch, at.stored_lengths),
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
        replay = advance(loss_fn, at.k1, at.stored_lengths, params, memory.replay, batch)
        calls = jnp.minimum(memory.calls_since_estimate + 1, at.every)
        is_due = (calls == at.every) & (replay.n_valid >= at.estimate_steps)

        def measure() -> tuple[Decay, WindowChoice]:
            past = past_of(replay, at.stored_lengths, at.estimate_steps)
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
        gradient = inner.estimate(params, memory_of(replay, at.stored_lengths, at.k1, k2), batch)
        return gradient.loss, gradient.grads, gradient.info

    return branch


def init_replay(carry: Carry, batch: Batch, stored_lengths: tuple[int, ...]) -> Replay:
    """Return the empty replay memory of a stream that starts from `carry`."""
    past = init_past(carry, batch, max(stored_lengths))
    # Copies: a train step donates its state, and no buffer can be donated twice.
    carries = tuple(jax.tree.map(jnp.copy, carry) for _ in stored_lengths)
    return Replay(carries, past.batch, past.n_valid)


def past_of(replay: Replay, stored_lengths: tuple[int, ...], n_stored: int) -> Past:
    """Return the last `n_stored` steps with the carry that enters them."""
    newest = jax.tree.map(lambda a: a[max(stored_lengths) - n_stored :], replay.steps)
    return Past(
        replay.carries[stored_lengths.index(n_stored)],
        newest,
        jnp.minimum(replay.n_valid, n_stored),
    )


def memory_of(replay: Replay, stored_lengths: tuple[int, ...], k1: int, k2: int) -> Memory:
    """Return the memory of `truncated_bptt(loss_fn, k1, k2)`."""
    past = past_of(replay, stored_lengths, max(k2 - k1, 0))
    return past if k2 > k1 else past.carry


def advance(
    loss_fn: LossFn,
    k1: int,
    stored_lengths: tuple[int, ...],
    params: Params,
    replay: Replay,
    new: Batch,
) -> Replay:
    """Store T = n k1 new steps.

    Every carry advances over the T steps that leave its past, in windows of k1 steps.
    """
    new = without_masked_values(new)
    carries = tuple(
        _advance_carry(
            loss_fn, k1, n_stored, params, past_of(replay, stored_lengths, n_stored), new
        )
        for n_stored in stored_lengths
    )
    steps = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[b.shape[0] :], replay.steps, new)
    return Replay(carries, steps, jnp.minimum(replay.n_valid + length(new), max(stored_lengths)))


def _advance_carry(
    loss_fn: LossFn, k1: int, n_stored: int, params: Params, past: Past, new: Batch
) -> Carry:
    """Advance one carry over the steps that leave its past.

    The number of valid steps is a multiple of k1 until it is `n_stored`. So the first windows that
    leave the past hold no valid step, one may be valid from step `n_stored % k1` on, all others
    entirely.
    """

    def body(state: tuple[Carry, Array], segment: Batch) -> tuple[tuple[Carry, Array], None]:
        carry, n_valid = state
        if n_stored == 0:
            return (run(carry, segment), n_valid), None
        branch = (n_valid + k1 > n_stored).astype(jnp.int32) + (n_valid == n_stored)
        carry = jax.lax.switch(branch, (lambda c, _: c, run_part, run), carry, segment)
        return (carry, jnp.minimum(n_valid + k1, n_stored)), None

    def run(carry: Carry, segment: Batch) -> Carry:
        return loss_fn(params, carry, segment)[1]

    def run_part(carry: Carry, segment: Batch) -> Carry:
        return run(carry, split(segment, n_stored % k1)[1])

    T = length(new)
    leaving = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[:T], past.batch, new)
    return jax.lax.scan(body, (past.carry, past.n_valid), split_windows(leaving, k1))[0][0]
