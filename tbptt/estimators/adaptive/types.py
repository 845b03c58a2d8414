"""Memory, info and settings of `adaptive_bptt`."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from tbptt.estimators.adaptive.choice import WindowChoice
from tbptt.estimators.adaptive.decay import Decay
from tbptt.estimators.adaptive.replay import Replay


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
    def olds(self) -> tuple[int, ...]:
        """Return how many steps back a carry is stored: for every window, and for the estimate."""
        windows = {max(k2 - self.k1, 0) for k2 in self.windows}
        return tuple(sorted(windows | {self.estimate_steps}))

    @property
    def estimate_steps(self) -> int:
        """Return the number of steps of one estimate."""
        return self.lags + self.losses - 1
