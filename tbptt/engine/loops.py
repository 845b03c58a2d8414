"""The two loops over time that no algebra removes, forward and back, as something an engine is given."""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from tbptt.engine.scan import Steps, entering_carry, where
from tbptt.types import Backprop, Carry, Params


class Ran(NamedTuple):
    """What is known of a block of steps once it has run: what it ran over, what entered and left each step, what was saved
    (None if it was not kept)."""

    steps: Steps
    entering: Carry
    leaving: Carry
    saved: Any


@runtime_checkable
class Loops(Protocol):
    """The loops of a cell's `Backprop` over a block of steps; `ScanLoops` is what they compute."""

    @property
    def back(self) -> Backprop: ...

    def prepare(self, params: Params) -> Any:
        """Computes what the loops need of the parameters."""
        ...

    def forward(self, weights: Any, start: Carry, carry: Carry, steps: Steps, keep: bool) -> tuple[Carry, Any, Any]:
        """Runs `back.inputs`, then `back.forward` step after step from `carry`, from `start` where a step is reset.

        Returns `(carries, ys, saved)`: what leaves each step, the outputs (the very leaf of the carries, where they are
        one), what `back.linearize` need not compute again; saved is None unless `keep` (static).
        """
        ...

    def backward(self, weights: Any, ran: Ran, d: Carry, d_ys: Any) -> tuple[Carry, Any, Any]:
        """Runs `back.linearize`, then `back.backward` from the last step to the first.

        Returns `(d_entering, emitted, factors)`; factors, of `linearize`, are None if `back.collect` reads none of them.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ScanLoops:
    """The loops of any cell, as scans."""

    back: Backprop

    def prepare(self, params: Params) -> Any:
        return self.back.prepare(params)

    def forward(self, weights: Any, start: Carry, carry: Carry, steps: Steps, keep: bool) -> tuple[Carry, Any, Any]:
        zs = self.back.inputs(weights, steps.xs)
        which: list[int | None] = []  # found while the body is traced

        def body(carry: Carry, now: Steps) -> tuple[Carry, Any]:
            leaving, y, saved = self.back.forward(weights, entering_carry(carry, start, now.resets), now.xs)
            # An output that is a leaf of the carry, as every cell's here is, need not be stacked a second time.
            which[:] = [next((i for i, leaf in enumerate(jax.tree.leaves(leaving)) if leaf is y), None)]
            carry = leaving if now.mask is None else where(now.mask, leaving, carry)
            return carry, (carry, y if which[0] is None else None, saved if keep else None)

        _, (carries, ys, saved) = jax.lax.scan(body, carry, steps._replace(xs=zs))
        return carries, ys if which[0] is None else jax.tree.leaves(carries)[which[0]], saved

    def backward(self, weights: Any, ran: Ran, d: Carry, d_ys: Any) -> tuple[Carry, Any, Any]:
        steps, entering, leaving, saved = ran
        common, factors = self.back.linearize(weights, steps.xs, entering, leaving, saved)

        def body(d: Carry, now: Any) -> tuple[Carry, Any]:
            return _step_back(functools.partial(self.back.backward, common), d, *now)

        d, emitted = jax.lax.scan(body, d, (factors, d_ys, steps.resets, steps.mask), reverse=True)
        return d, emitted, factors


def _step_back(backward: Any, d: Carry, factors: Any, d_y: Any, reset: Any, exists: Any) -> tuple[Carry, Any]:
    """One step of the reverse loop: a step that does not exist hands its cotangent on, a reset lets none through."""
    zero = jax.tree.map(jnp.zeros_like, d)
    if exists is None:
        d_entering, emitted = backward(factors, d, d_y)
        return d_entering if reset is None else where(reset, zero, d_entering), emitted
    d_y = where(exists, d_y, jax.tree.map(jnp.zeros_like, d_y))
    d_entering, emitted = backward(factors, where(exists, d, zero), d_y)
    d_before = d_entering if reset is None else where(reset, zero, d_entering)
    return where(exists, d_before, d), emitted
