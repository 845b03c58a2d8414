"""The plain scan of one step after another, and cutting time into blocks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from tbptt.types import Carry
from tbptt.windows import length


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


def scan_blocks(
    run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, n: int, reverse: bool = False
) -> tuple[Any, Any]:
    """Runs n blocks of equal length one after another; what comes out has a leading axis `[n]`. One block needs no loop."""
    blocks = jax.tree.map(lambda a: a.reshape(n, a.shape[0] // n, *a.shape[1:]), steps)
    if n > 1:
        return jax.lax.scan(run, carry, blocks, reverse=reverse)
    carry, out = run(carry, jax.tree.map(lambda a: a[0], blocks))
    return carry, jax.tree.map(lambda a: a[None], out)


def in_pieces(run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, piece: int) -> tuple[Any, Any]:
    """Runs pieces of equal length as one scan, and what is left over as a shorter piece of its own."""
    n, rest = divmod(length(steps), piece)
    even = jax.tree.map(lambda a: a[: n * piece], steps)
    tail = jax.tree.map(lambda a: a[n * piece :], steps)
    if n == 0:
        return run(carry, tail)
    carry, ys = scan_blocks(run, carry, even, n)
    ys = jax.tree.map(lambda a: a.reshape(n * piece, *a.shape[2:]), ys)
    if not rest:
        return carry, ys
    carry, tail_ys = run(carry, tail)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, tail_ys)
