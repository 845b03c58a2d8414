"""The loops over time: the plain scan, and the forward and backward loop that a backend supplies.

The plain scan defines the result of every unroll function.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from tbptt.cells.base import CellVJP
from tbptt.numerics import select
from tbptt.types import Carry, Params


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


class Residuals(NamedTuple):
    """Residuals of a block of steps: inputs, entering and leaving carries, `saved` or None."""

    steps: Steps
    entering: Carry
    leaving: Carry
    saved: Any


@runtime_checkable
class Backend(Protocol):
    """The loops of a `CellVJP` over a block of steps; `ScanBackend` defines what they compute."""

    @property
    def cell_vjp(self) -> CellVJP: ...

    def prepare(self, params: Params) -> Any:
        """Compute the weights that the loops use."""
        ...

    def forward(
        self, weights: Any, initial: Carry, carry: Carry, steps: Steps, save: bool
    ) -> tuple[Carry, Any, Any]:
        """Run `cell_vjp.inputs`, then `cell_vjp.forward` at every step.

        A reset replaces the entering carry by `initial`. Return `(carries, ys, saved)`: the carries
        that leave each step, the outputs (the same array as a leaf of the carries where the two are
        equal), and intermediates that `cell_vjp.linearize` can reuse. `saved` is None unless
        `save`, which is static.
        """
        ...

    def backward(
        self, weights: Any, residuals: Residuals, d: Carry, d_ys: Any
    ) -> tuple[Carry, Any, Any]:
        """Run `cell_vjp.linearize`, then `cell_vjp.backward` from the last step to the first.

        Return `(d_entering, emitted, factors)`. `factors` may be None if `cell_vjp.collect` does
        not read them.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ScanBackend:
    """The loops of any cell as `jax.lax.scan`."""

    cell_vjp: CellVJP

    def prepare(self, params: Params) -> Any:
        return self.cell_vjp.prepare(params)

    def forward(
        self, weights: Any, initial: Carry, carry: Carry, steps: Steps, save: bool
    ) -> tuple[Carry, Any, Any]:
        zs = self.cell_vjp.inputs(weights, steps.xs)
        output_leaf: list[int | None] = []  # set while the body is traced

        def body(carry: Carry, now: Steps) -> tuple[Carry, Any]:
            leaving, y, saved = self.cell_vjp.forward(
                weights, entering_carry(carry, initial, now.resets), now.xs
            )
            # An output that is a leaf of the carry is not stacked a second time.
            output_leaf[:] = [leaf_index(leaving, y)]
            carry = leaving if now.mask is None else select(now.mask, leaving, carry)
            return carry, (carry, y if output_leaf[0] is None else None, saved if save else None)

        _, (carries, ys, saved) = jax.lax.scan(body, carry, steps._replace(xs=zs))
        return (
            carries,
            ys if output_leaf[0] is None else jax.tree.leaves(carries)[output_leaf[0]],
            saved,
        )

    def backward(
        self, weights: Any, residuals: Residuals, d: Carry, d_ys: Any
    ) -> tuple[Carry, Any, Any]:
        steps, entering, leaving, saved = residuals
        common, factors = self.cell_vjp.linearize(weights, steps.xs, entering, leaving, saved)

        def body(d: Carry, now: Any) -> tuple[Carry, Any]:
            return _step_back(functools.partial(self.cell_vjp.backward, common), d, *now)

        d, emitted = jax.lax.scan(body, d, (factors, d_ys, steps.resets, steps.mask), reverse=True)
        return d, emitted, factors


def differentiated_by(scan: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """Return `run`, whose derivative is that of `scan`, a function with the same values.

    Both results have their mapped axis first under `jax.vmap`, because JAX takes the mapped axes of
    a function's own results for those of its `custom_jvp` rule too.
    """

    @jax.custom_jvp
    def differentiable(*args: Any) -> Any:
        return jax.tree.map(_batch_axis_first, run(*args))

    def derivative(primals: Any, tangents: Any) -> Any:
        return jax.tree.map(_batch_axis_first, jax.jvp(scan, primals, tangents))

    differentiable.defjvp(derivative)
    return differentiable


def _batch_axis_first(a: Array) -> Array:
    """Return `a`; the batching rule of a reshape moves the mapped axis to the front."""
    return jnp.squeeze(jax.lax.reshape(a, (1, *a.shape)), 0)


def leaf_index(tree: Any, value: Any) -> int | None:
    """Return the position of the leaf that is `value` itself, or None."""
    return next((i for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf is value), None)


def _step_back(
    backward: Any, d: Carry, factors: Any, d_y: Any, reset: Any, exists: Any
) -> tuple[Carry, Any]:
    """Take one step back; a masked step leaves the cotangent unchanged, a reset makes it 0."""
    zero = jax.tree.map(jnp.zeros_like, d)
    if exists is None:
        d_entering, emitted = backward(factors, d, d_y)
        return d_entering if reset is None else select(reset, zero, d_entering), emitted
    d_y = select(exists, d_y, jax.tree.map(jnp.zeros_like, d_y))
    d_entering, emitted = backward(factors, select(exists, d, zero), d_y)
    d_before = d_entering if reset is None else select(reset, zero, d_entering)
    return select(exists, d_before, d), emitted
