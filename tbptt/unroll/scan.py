"""The plain scan over time, which defines what every unroll function computes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from tbptt.numerics import select
from tbptt.types import Carry


class Steps(NamedTuple):
    """What a cell is run over, every leaf `[T, *batch, ...]`: inputs, where to reset, and which steps exist."""

    xs: Any
    resets: Bool[Array, "T *batch"] | None = None
    mask: Bool[Array, "T *batch"] | None = None


def plain_scan(step: Callable[..., Any], initial: Carry, carry: Carry, steps: Steps) -> tuple[Carry, Any]:
    """Scan a step `(carry, x) -> (carry, y)`, differentiated by JAX.

    for t in range(T):
        if not mask[t]: ys[t] = 0; continue
        if resets[t]: carry = initial
        carry, ys[t] = step(carry, xs[t])
    """

    def body(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        new, y = step(entering_carry(carry, initial, now.resets), now.xs)
        if now.mask is None:
            return new, y
        return select(now.mask, new, carry), select(now.mask, y, jax.tree.map(jnp.zeros_like, y))

    return jax.lax.scan(body, carry, steps)


def entering_carry(carry: Carry, initial: Carry, resets: Bool[Array, "*batch"] | None) -> Carry:
    """Return the carry that a step starts from."""
    return carry if resets is None else select(resets, initial, carry)


def reverse_time(tree: Any) -> Any:
    """Reverse every leaf along its first axis."""
    return jax.tree.map(lambda a: a[::-1], tree)
