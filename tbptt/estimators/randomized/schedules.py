"""When to cut: probabilities of truncation for an unbiased gradient, and random lengths for a biased one."""

import dataclasses
import math
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from tbptt.types import PRNGKey

Number: TypeAlias = float | int


@runtime_checkable
class TruncationSchedule(Protocol):
    """With what probability to cut at a seam; hashable."""

    def probability(self, since: Int[ArrayLike, ""], k1: int) -> Float[ArrayLike, ""]:
        """Returns c in [0, 1), where the last cut lies `since` steps back (k1, 2 k1, ...) and seams lie k1 apart."""
        ...


@runtime_checkable
class LengthSchedule(Protocol):
    """How long a window is; hashable."""

    def length(self, key: PRNGKey) -> Float[Array, ""]:
        """Draws a length in steps; whoever cuts rounds it to a multiple of k1, at least one. The key is consumed."""
        ...


@dataclasses.dataclass(frozen=True)
class ConstantRate:
    """Cuts at every seam with the same probability: the lengths between cuts are geometric.

        c = k1 / mean_length

    A signal that survives d steps is multiplied by (1 - c)^(-d / k1): the variance grows exponentially with d unless the
    gradient decays faster.

    mean_length: steps between cuts, on average, > k1 and finite.
    """

    mean_length: Number

    def __post_init__(self) -> None:
        _check_mean(self.mean_length)

    def probability(self, since: Int[ArrayLike, ""], k1: int) -> Float[ArrayLike, ""]:
        """Returns c; `since` does not matter."""
        del since
        return k1 / self.mean_length


@dataclasses.dataclass(frozen=True)
class HeavyTail:
    """Cuts with a probability that falls with the steps l since the last cut: long stretches happen.

        c(l) = alpha k1 / ((alpha - 1) mean_length + l),    l = k1, 2 k1, ...

    P(length > l) falls like l^-alpha, and its mean is `mean_length` exactly. So the factor of a signal that survives d
    steps grows like d^alpha and not exponentially.

    mean_length: steps between cuts, on average, > k1.
    alpha: the exponent, > 1 (at most 1 has no mean); at most 2 has no variance of the length.

    References: Tallec and Ollivier, *Unbiasing truncated backpropagation through time*, arXiv:1705.08209.
    """

    mean_length: Number
    alpha: Number = 4.0

    def __post_init__(self) -> None:
        _check_mean(self.mean_length)
        if not 1 < self.alpha < math.inf:
            raise ValueError(f"alpha must be above 1, or the lengths have no mean; got alpha={self.alpha}")

    def probability(self, since: Int[ArrayLike, ""], k1: int) -> Float[ArrayLike, ""]:
        """Returns c(since)."""
        return self.alpha * k1 / ((self.alpha - 1) * self.mean_length + since)


@dataclasses.dataclass(frozen=True)
class AwdLengths:
    """Draws lengths by AWD-LSTM's rule, which moves the edges of the windows about.

        center = base with probability `usual`, else base / 2
        length = max(shortest, trunc(Normal(center, spread)))

    base, shortest, spread: in steps. AWD-LSTM also scales its learning rate by length / base; this does not.

    References: Merity, Keskar and Socher, *Regularizing and optimizing LSTM language models*, ICLR 2018, section 5.
    """

    base: Number
    usual: Number = 0.95
    spread: Number = 5.0
    shortest: Number = 5.0

    def __post_init__(self) -> None:
        if not (0 < self.base < math.inf and 0 < self.shortest < math.inf and 0 <= self.spread < math.inf):
            raise ValueError(f"base and shortest must be positive steps, spread at least 0, all finite; got {self}")
        if not 0 <= self.usual <= 1:
            raise ValueError(f"usual must be a probability; got usual={self.usual}")

    def length(self, key: PRNGKey) -> Float[Array, ""]:
        """Draws a length in steps."""
        which, how_long = jax.random.split(key)
        center = jnp.where(jax.random.bernoulli(which, self.usual), self.base, self.base / 2)
        return jnp.maximum(self.shortest, jnp.trunc(center + self.spread * jax.random.normal(how_long)))


@dataclasses.dataclass(frozen=True)
class LogUniformLengths:
    """Draws lengths whose logarithm is uniform: every time scale between the two is as likely as any other.

        length = exp(Uniform(log shortest, log longest))

    shortest, longest: in steps, 0 < shortest <= longest.
    """

    shortest: Number
    longest: Number

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest < math.inf:
            raise ValueError(f"lengths need 0 < shortest <= longest, in steps and finite; got {self}")

    def length(self, key: PRNGKey) -> Float[Array, ""]:
        """Draws a length in steps."""
        low, high = math.log(self.shortest), math.log(self.longest)
        return jnp.exp(jax.random.uniform(key, minval=low, maxval=high))


def _check_mean(mean_length: Number) -> None:
    if not 0 < mean_length < math.inf:
        raise ValueError(
            f"mean_length must be positive and finite, in steps; got mean_length={mean_length}. What never cuts is "
            "full_bptt(loss_fn)"
        )
