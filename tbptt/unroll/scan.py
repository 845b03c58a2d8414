"""The plain scan over time, which defines the result of every unroll function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from tbptt.numerics import select
from tbptt.types import Carry


class Steps(NamedTuple):
    """The inputs of a cell over time, every leaf `[T, *batch, ...]`; see `unroll`."""

    xs: Any
    resets: Bool[Array, "T *batch"] | None = None
    mask: Bool[Array, "T *batch"] | None = None


def plain_scan(
    step: Callable[..., Any], initial: Carry, carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
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
    """Return the carry that enters a step: `initial` where the step is reset."""
    return carry if resets is None else select(resets, initial, carry)


def reverse_time(tree: Any) -> Any:
    """Reverse every leaf along its first axis."""
    return jax.tree.map(lambda a: a[::-1], tree)
