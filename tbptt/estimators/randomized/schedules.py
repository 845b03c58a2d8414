"""Schedules of random truncation: probabilities for `randomized_bptt`, lengths for windows."""

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
    """The probability of truncation at a boundary; hashable."""

    def probability(self, since: Int[ArrayLike, ""], k1: int) -> Float[ArrayLike, ""]:
        """Return the probability c in [0, 1).

        Args:
          since: steps since the last truncation: k1, 2 k1, ...
          k1: static; steps between boundaries.
        """
        ...


@runtime_checkable
class LengthSchedule(Protocol):
    """The distribution of window lengths; hashable."""

    def length(self, key: PRNGKey) -> Float[Array, ""]:
        """Draw a length in steps. The key is consumed.

        The estimator rounds it to a multiple of k1, at least k1.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ConstantRate:
    """The same probability of truncation at every boundary, for geometric lengths.

        c = k1 / mean_length

    A signal that survives d steps is multiplied by (1 - c)^(-d / k1). So the variance grows
    exponentially with d, unless the gradient decays faster.

    mean_length: mean number of steps between truncations, above k1 and finite.
    """

    mean_length: Number

    def __post_init__(self) -> None:
        _check_mean(self.mean_length)

    def probability(self, since: Int[ArrayLike, ""], k1: int) -> Float[ArrayLike, ""]:
        """Return c, which does not depend on `since`."""
        del since
        return k1 / self.mean_length


@dataclasses.dataclass(frozen=True)
class HeavyTail:
    """A probability that falls with the steps l since the last truncation: heavy-tailed lengths.

        c(l) = alpha k1 / ((alpha - 1) mean_length + l),    l = k1, 2 k1, ...

    P(length > l) falls like l^-alpha, and the mean length is exactly `mean_length`. So the factor
    of a signal that survives d steps grows like d^alpha, not exponentially.

    mean_length: mean number of steps between truncations, above k1 and finite.
    alpha: exponent, above 1 (otherwise there is no mean); at most 2 gives lengths without variance.

    References: Tallec and Ollivier, *Unbiasing truncated backpropagation through time*,
    arXiv:1705.08209.
    """

    mean_length: Number
    alpha: Number = 4.0

    def __post_init__(self) -> None:
        _check_mean(self.mean_length)
        if not 1 < self.alpha < math.inf:
            raise ValueError(
                "alpha must be above 1 and finite, so that lengths have a mean; got "
                f"alpha={self.alpha}"
            )

    def probability(self, since: Int[ArrayLike, ""], k1: int) -> Float[ArrayLike, ""]:
        """Return c(since)."""
        return self.alpha * k1 / ((self.alpha - 1) * self.mean_length + since)


@dataclasses.dataclass(frozen=True)
class AwdLengths:
    """The window lengths of AWD-LSTM, which vary the positions of the window boundaries.

        center = base with probability `base_probability`, else base / 2
        length = max(shortest, trunc(Normal(center, std)))

    base, std, shortest: in steps. AWD-LSTM also scales its learning rate by length / base; this
    class does not.

    References: Merity, Keskar and Socher, *Regularizing and optimizing LSTM language models*, ICLR
    2018, section 5.
    """

    base: Number
    base_probability: Number = 0.95
    std: Number = 5.0
    shortest: Number = 5.0

    def __post_init__(self) -> None:
        lengths = self.base, self.shortest
        if not (all(0 < length < math.inf for length in lengths) and 0 <= self.std < math.inf):
            raise ValueError(
                "base and shortest must be positive, std at least 0, all finite, in steps; got "
                f"{self}"
            )
        if not 0 <= self.base_probability <= 1:
            raise ValueError(
                "base_probability must be a probability between 0 and 1; got "
                f"base_probability={self.base_probability}"
            )

    def length(self, key: PRNGKey) -> Float[Array, ""]:
        """Draw a length in steps. The key is consumed."""
        center_key, normal_key = jax.random.split(key)
        is_base = jax.random.bernoulli(center_key, self.base_probability)
        center = jnp.where(is_base, self.base, self.base / 2)
        drawn = jnp.trunc(center + self.std * jax.random.normal(normal_key))
        return jnp.maximum(self.shortest, drawn)


@dataclasses.dataclass(frozen=True)
class LogUniformLengths:
    """Window lengths with a uniform logarithm: all time scales in the range are equally likely.

        length = exp(Uniform(log shortest, log longest))

    shortest, longest: in steps, 0 < shortest <= longest.
    """

    shortest: Number
    longest: Number

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest < math.inf:
            raise ValueError(
                f"lengths must satisfy 0 < shortest <= longest, finite, in steps; got {self}"
            )

    def length(self, key: PRNGKey) -> Float[Array, ""]:
        """Draw a length in steps. The key is consumed."""
        low, high = math.log(self.shortest), math.log(self.longest)
        return jnp.exp(jax.random.uniform(key, minval=low, maxval=high))


def _check_mean(mean_length: Number) -> None:
    if not 0 < mean_length < math.inf:
        raise ValueError(
            "mean_length must be positive and finite, in steps; got "
            f"mean_length={mean_length}. For no truncation use full_bptt(loss_fn)"
        )
