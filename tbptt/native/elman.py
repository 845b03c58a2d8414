"""The simple network's steps, with tanh, as two loops, forward and back, compiled for the CPU."""

import jax
from jaxtyping import Array

from tbptt.cells.elman import ElmanBackprop, ElmanCarry, ElmanParams
from tbptt.cells.products import product
from tbptt.engine.loops import Ran
from tbptt.engine.scan import Steps
from tbptt.native.arithmetic import add_product, add_product_back, clear, enter, hold, tanh
from tbptt.native.call import call_loop, given
from tbptt.native.frame import buffers, compiled, cube, flags, matrix


@compiled
def forward(zs, w, h_in, h_start, resets, mask, hs, a):  # type: ignore[no-untyped-def]
    """Runs `ElmanBackprop.forward` over steps.

    zs: `[T, N, H]`; w: `[H, H]`; h_in, h_start: `[N, H]`, what enters the first step and what a reset one; filled in:
    hs: `[T, N, H]`, what leaves each; a: `[N, H]`, for work.
    """
    T, N, H = zs.shape
    for t in range(T):
        h, before = hs[t], h_in if t == 0 else hs[t - 1]
        enter(h, before, h_start, resets, t)
        for n in range(N):
            for j in range(H):
                a[n, j] = zs[t, n, j]
        add_product(a, h, w)
        for n in range(N):
            for j in range(H):
                h[n, j] = tanh(a[n, j])
        hold(h, before, mask, t)


@compiled
def backward(w, hs, d_h, d_ys, resets, mask, h, emitted):  # type: ignore[no-untyped-def]
    """Runs `ElmanBackprop.linearize` and `ElmanBackprop.backward` from the last step to the first.

    w: `[H, H]`; hs, d_ys: `[T, N, H]`, what left each step and its output's cotangent; d_h: `[N, H]`, the cotangent of what
    left the last one; filled in: h: `[N, H]`, that of what entered the first; emitted: `[T, N, H]`.
    """
    (T, N, H), one = hs.shape, hs.dtype.type(1)
    for n in range(N):
        for j in range(H):
            h[n, j] = d_h[n, j]
    for t in range(T - 1, -1, -1):
        a = emitted[t]
        for n in range(N):
            exists = mask.size == 0 or mask[t, n]
            for j in range(H):
                slope = one - hs[t, n, j] * hs[t, n, j]
                a[n, j] = (h[n, j] + d_ys[t, n, j]) * slope if exists else 0
                h[n, j] = 0 if exists else h[n, j]
        add_product_back(h, a, w)
        clear(h, resets, mask, t)


def _forward(kind, sources):  # type: ignore[no-untyped-def]
    def elman_forward(address):  # type: ignore[no-untyped-def]
        ins, outs = buffers(address)
        if ins.size > 0:
            weights = cube(ins[0], kind), matrix(ins[1], kind)
            carries = matrix(ins[2], kind), matrix(ins[3], kind)
            forward(*weights, *carries, flags(ins[4]), flags(ins[5]), cube(outs[0], kind), matrix(outs[1], kind))
        return 0 * sources

    return elman_forward


def _backward(kind, sources):  # type: ignore[no-untyped-def]
    def elman_backward(address):  # type: ignore[no-untyped-def]
        ins, outs = buffers(address)
        if ins.size > 0:
            kept = matrix(ins[0], kind), cube(ins[1], kind)
            d = matrix(ins[2], kind), cube(ins[3], kind)
            backward(*kept, *d, flags(ins[4]), flags(ins[5]), matrix(outs[0], kind), cube(outs[1], kind))
        return 0 * sources

    return elman_backward


def call_forward(
    back: ElmanBackprop, keep: bool, params: ElmanParams, start: ElmanCarry, carry: ElmanCarry, steps: Steps
) -> tuple[ElmanCarry, tuple[()] | None]:
    """Calls `forward`; returns (carries, saved): of tanh nothing need be saved."""
    zs = product(steps.xs, params.w_x, back.compute) + params.b
    carries = ElmanCarry(jax.ShapeDtypeStruct(zs.shape, zs.dtype))  # type: ignore[arg-type]
    arguments = zs, params.w_h, carry, start, given(steps.resets), given(steps.mask)
    carries, _ = call_loop(_forward, arguments, (carries, jax.ShapeDtypeStruct(zs.shape[1:], zs.dtype)))
    return carries, () if keep else None


def call_backward(
    back: ElmanBackprop, params: ElmanParams, ran: Ran, d: ElmanCarry, d_ys: Array
) -> tuple[ElmanCarry, Array, None]:
    """Calls `backward`; returns (d_entering, emitted, None), as `ElmanBackprop.collect` reads no factors."""
    del back
    out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys))
    return *call_loop(
        _backward, (params.w_h, ran.leaving, d, d_ys, given(ran.steps.resets), given(ran.steps.mask)), out
    ), None
