"""The plain scan of one step after another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from tbptt.types import Carry


class Steps(NamedTuple):
    """What an engine runs over, every leaf `[T, *batch, ...]`: the input side, where to reset, which steps exist."""

    xs: Any
    resets: Bool[Array, "T *batch"] | None = None
    mask: Bool[Array, "T *batch"] | None = None


def plain_scan(step: Callable[..., Any], initial: Carry, carry: Carry, steps: Steps) -> tuple[Carry, Any]:
    """Scans a step `(carry, x) -> (carry, y)`, and lets JAX differentiate the loop: the definition of every engine.

    for t in range(T):
        if not mask[t]: ys[t] = 0; continue
        if resets[t]: carry = initial
        carry, ys[t] = step(carry, xs[t])
    """

    def body(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        entering = entering_carry(carry, initial, now.resets)
        new, y = step(entering, now.xs)
        if now.mask is None:
            return new, y
        return where(now.mask, new, carry), where(now.mask, y, jax.tree.map(jnp.zeros_like, y))

    return jax.lax.scan(body, carry, steps)


def entering_carry(carry: Carry, initial: Carry, resets: Bool[Array, "*batch"] | None) -> Carry:
    """Returns the carry that a step starts from."""
    return carry if resets is None else where(resets, initial, carry)


def where(condition: Bool[Array, "*batch"], chosen: Any, other: Any) -> Any:
    """Selects whole leaves `[*batch, ...]` by a condition `[*batch]`."""

    def select(a: Array, b: Array) -> Array:
        rank = max(jnp.ndim(a), jnp.ndim(b))
        return jnp.where(condition.reshape(condition.shape + (1,) * (rank - condition.ndim)), a, b)

    return jax.tree.map(select, chosen, other)
