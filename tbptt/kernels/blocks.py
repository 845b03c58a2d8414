"""The engine's forward and backward pass with kernels for its two loops over time; all else stays as it is there."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tbptt.engine.backprop import backward_blocks
from tbptt.engine.scan import Steps, where
from tbptt.engine.sizes import block_steps
from tbptt.types import Backprop, Carry, Params
from tbptt.windows import scan_blocks


@runtime_checkable
class Kernels(Protocol):
    """The loops of a cell's `Backprop` over a block of steps of N lanes, N a multiple of `grid.LANES`."""

    @property
    def back(self) -> Backprop: ...

    def forward(
        self, weights: Any, carry: Carry, zs: Any, resets: Array | None, mask: Array | None, keep: bool
    ) -> tuple[Carry, Any]:
        """Runs `back.forward` step after step: `(leaving, saved)`; saved is None unless `keep`. y is the carry's h."""
        ...

    def backward(
        self, common: Any, factors: Any, d: Carry, d_ys: Any, resets: Array | None, mask: Array | None
    ) -> tuple[Carry, Any]:
        """Runs `back.backward` from the last step to the first: `(d_entering, emitted)`."""
        ...


def kernel_scan(
    kernels: Kernels, initial: Callable[[], Carry], params: Params, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """Computes what `backprop_scan` computes, by kernels: blocks of equal length, and what is left over as one more."""
    T, length = steps.xs.shape[0], block_steps(kernels.back, params, steps.xs)
    even = T // length * length
    carry, ys = _blocks(kernels, initial, even // length, params, carry, jax.tree.map(lambda a: a[:even], steps))
    if even == T:
        return carry, ys
    carry, tail = _blocks(kernels, initial, 1, params, carry, jax.tree.map(lambda a: a[even:], steps))
    return carry, jnp.concatenate([ys, tail])


def _blocks(kernels: Kernels, initial: Any, n: int, params: Params, carry: Carry, steps: Steps) -> tuple[Carry, Array]:
    def steps_back(common: Any, d: Carry, now: Any) -> tuple[Carry, Any]:
        factors, d_ys, resets, mask = now
        return kernels.backward(common, factors, d, d_ys, resets, mask)

    run = jax.custom_vjp(lambda *args: _forward(kernels, n, False, *args)[0])
    back = functools.partial(backward_blocks, kernels.back, initial, n, steps_back)
    run.defvjp(functools.partial(_forward, kernels, n, True), back)
    return run(params, carry, steps)


def _forward(kernels: Kernels, n: int, keep: bool, params: Params, carry: Carry, steps: Steps) -> Any:
    """As the engine's: what it returns second is what `backward_blocks` reads."""
    weights = kernels.back.prepare(params)

    def block(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        zs = kernels.back.inputs(weights, now.xs)
        carries, saved = kernels.forward(weights, carry, zs, now.resets, now.mask, keep)
        return jax.tree.map(lambda a: a[-1], carries), (carry, carries, saved)

    last, (starts, carries, saved) = scan_blocks(block, carry, steps, n)
    ys = carries.h.reshape(-1, *carries.h.shape[2:])
    if steps.mask is not None:
        ys = where(steps.mask, ys, jnp.zeros_like(ys))
    return (last, ys), (params, starts, carries, saved, steps)
