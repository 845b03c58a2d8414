"""What `adaptive_bptt` remembers, reports and is told."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from tbptt.estimators.adaptive.choice import WindowChoice
from tbptt.estimators.adaptive.decay import Decay
from tbptt.estimators.adaptive.replay import Trail


class AdaptiveMemory(NamedTuple):
    """What `adaptive_bptt` remembers.

    trail:  the steps and carries that every window and the next estimate need
    decay:  the running estimate of gradients by lag
    choice: the window of the next call, and why
    since:  scalar, calls since the last estimate
    """

    trail: Trail
    decay: Decay
    choice: WindowChoice
    since: Int[Array, ""]


class AdaptiveInfo(NamedTuple):
    """What happened in one call of n windows, and what it learnt for the next.

    losses, weights: `[n]`, as `WindowInfo`
    k2:       scalar, the window of THIS call
    next_k2:  scalar, the window of the next call
    choice:   why: the `WindowChoice` that gave next_k2. Not yet estimated: the largest, decays and enough False
    phi:      `[lags]`, the running estimate that it was made from, lag 1 first
    parts:    `[lags - 1]`, norms of the gradient's contributions by lag, 1 first
    largest:  scalar, the largest norm of a gradient over K <= lags steps
    estimates: scalar, how many estimates are in these; 0 = none yet
    measured: scalar, whether this call made one
    broken:   scalar, whether the newest one was not finite: it is left out, and the largest window taken
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    k2: Int[Array, ""]
    next_k2: Int[Array, ""]
    choice: WindowChoice
    phi: Float[Array, " lags"]
    parts: Float[Array, " parts"]
    largest: Float[Array, ""]
    estimates: Int[Array, ""]
    measured: Bool[Array, ""]
    broken: Bool[Array, ""]


class Settings(NamedTuple):
    """All that is static: the arguments of `adaptive_bptt`."""

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
        """How far back carries are remembered: for every window, and for the estimate."""
        return tuple(sorted({max(k2 - self.k1, 0) for k2 in self.windows} | {self.reach}))

    @property
    def reach(self) -> int:
        """Steps that one estimate goes through."""
        return self.lags + self.losses - 1
