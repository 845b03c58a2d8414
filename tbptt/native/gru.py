"""The GRU's steps as two loops, forward and back, compiled for the CPU."""

from typing import Any

import jax
from jaxtyping import Array

from tbptt.cells.gru import GRUBackprop, GRUFactors
from tbptt.cells.gru_base import GRUCarry
from tbptt.cells.products import input_side
from tbptt.engine.loops import Ran
from tbptt.engine.scan import Steps
from tbptt.native.arithmetic import clear, enter, hold, tanh
from tbptt.native.call import Weights, call_loop, given
from tbptt.native.frame import buffers, compiled, cube, flags, matrix
from tbptt.native.parts import in_parts, lanes_of
from tbptt.native.products import multiply, multiply_back


@compiled
def forward(zs, w, b_n, h_in, h_start, resets, mask, hs, gates, ns, ms, work, lanes):  # type: ignore[no-untyped-def]
    """Runs `GRUBackprop.forward` over steps.

    zs: `[T, N, G]`; w: `Weights.ahead`; b_n: `[1, H]`; h_in, h_start: `[N, H]`, what enters the first step and what a reset
    one; filled in: hs: `[T, N, H]`, what leaves each; gates: `[T, N, 2H]`, ns, ms: `[T, N, H]`, or `[1, ...]` where they
    are not kept; work: `[N, at least G]`; lanes: from the first to before the last.
    """
    (T, _, G), half = zs.shape, zs.dtype.type(0.5)
    H = G // 3
    for t in range(T):
        s = min(t, gates.shape[0] - 1)
        h, saved, before = hs[t], gates[s], h_in if t == 0 else hs[t - 1]
        enter(h, before, h_start, resets, t, lanes)
        multiply(work, h, w, lanes)
        for n in range(lanes[0], lanes[1]):
            for j in range(2 * H):
                saved[n, j] = tanh(half * (zs[t, n, j] + work[n, j]))
            for j in range(H):
                m = work[n, 2 * H + j] + b_n[0, j]
                new = tanh(zs[t, n, 2 * H + j] + half * (saved[n, j] * m + m))
                ms[s, n, j], ns[s, n, j] = m, new
                away = h[n, j] - new
                h[n, j] = new + half * (saved[n, H + j] * away + away)
        hold(h, before, mask, t, lanes)


@compiled
def backward(w, gates, zs, d_h, d_ys, resets, mask, h, emitted, a, work, lanes):  # type: ignore[no-untyped-def]
    """Runs `GRUBackprop.backward` from the last step to the first.

    w: `Weights.behind`; gates: `[T, N, G]` and zs: `[T, N, H]`, of its factors; d_ys: `[T, N, H]`; d_h: `[N, H]`, the
    cotangent of what left the last step; filled in: h: `[N, H]`, that of what entered the first; emitted: `[T, N, H]`; a:
    `[N, G]` and work: `[N, at least H]`, for work; lanes: as above.
    """
    T, _, G = gates.shape
    H = G // 3
    for n in range(lanes[0], lanes[1]):
        for j in range(H):
            h[n, j] = d_h[n, j]
    for t in range(T - 1, -1, -1):
        out = emitted[t]
        for n in range(lanes[0], lanes[1]):
            if mask.size > 0 and not mask[t, n]:
                for j in range(H):
                    out[n, j] = 0
                for j in range(G):
                    a[n, j] = 0
                continue
            # A loop for every gate: LLVM asks once for all rows whether parts overlap, and those of one loop would.
            for j in range(H):
                out[n, j] = h[n, j] + d_ys[t, n, j]
                a[n, j] = out[n, j] * gates[t, n, j]
                h[n, j] = out[n, j] * zs[t, n, j]
            for j in range(H):
                a[n, H + j] = out[n, j] * gates[t, n, H + j]
            for j in range(H):
                a[n, 2 * H + j] = out[n, j] * gates[t, n, 2 * H + j]
        multiply_back(work, a, w, lanes)
        for n in range(lanes[0], lanes[1]):
            for j in range(H):
                h[n, j] += work[n, j]
        clear(h, resets, mask, t, lanes)


@compiled
def _run_forward(w, ins, outs, kind, part, parts):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], kind), w, matrix(ins[2], kind)
    carries = matrix(ins[3], kind), matrix(ins[4], kind)
    out = cube(outs[0], kind), cube(outs[1], kind), cube(outs[2], kind), cube(outs[3], kind)
    work = matrix(outs[4], kind)
    forward(*weights, *carries, flags(ins[5]), flags(ins[6]), *out, work, lanes_of(part, parts, work))


_forward_in_parts = in_parts(_run_forward, 1)


@compiled
def _run_backward(w, ins, outs, kind, part, parts):  # type: ignore[no-untyped-def]
    factors = cube(ins[1], kind), cube(ins[2], kind)
    d = matrix(ins[3], kind), cube(ins[4], kind)
    out = matrix(outs[0], kind), cube(outs[1], kind), matrix(outs[2], kind), matrix(outs[3], kind)
    backward(w, *factors, *d, flags(ins[5]), flags(ins[6]), *out, lanes_of(part, parts, out[3]))


_backward_in_parts = in_parts(_run_backward, 0)


def _forward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def gru_forward(address):  # type: ignore[no-untyped-def]
        ins, outs = buffers(address)
        if ins.size > 0:
            if tiled:
                _forward_in_parts(address, kind)
            else:
                _run_forward(matrix(ins[1], kind), ins, outs, kind, 0, 1)
        return 0 * sources

    return gru_forward


def _backward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def gru_backward(address):  # type: ignore[no-untyped-def]
        ins, outs = buffers(address)
        if ins.size > 0:
            if tiled:
                _backward_in_parts(address, kind)
            else:
                _run_backward(matrix(ins[0], kind), ins, outs, kind, 0, 1)
        return 0 * sources

    return gru_backward


def call_forward(
    back: GRUBackprop, keep: bool, weights: Weights, start: GRUCarry, carry: GRUCarry, steps: Steps
) -> tuple[GRUCarry, tuple[Array, ...] | None]:
    """Calls `forward`; returns (carries, saved)."""
    zs = input_side(steps.xs, weights.params.w_x, weights.params.b, back.compute)
    (T, *batch, _), H = zs.shape, carry.h.shape[-1]

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, zs.dtype)

    kept = T if keep else 1
    saved = shape(kept, *batch, 2 * H), shape(kept, *batch, H), shape(kept, *batch, H)
    arguments = zs, weights.ahead, weights.params.b_n, carry, start, given(steps.resets), given(steps.mask)
    carries, saved = call_loop(
        _forward, weights.ahead, arguments, (GRUCarry(shape(T, *batch, H)), saved), zs.shape[0], zs.shape[1:]
    )
    return carries, saved if keep else None


def call_backward(
    back: GRUBackprop, weights: Weights, ran: Ran, d: GRUCarry, d_ys: Array
) -> tuple[GRUCarry, Array, GRUFactors]:
    """Calls `backward`; returns (d_entering, emitted, factors)."""
    _, factors = back.linearize(back.prepare(weights.params), ran.steps.xs, ran.entering, ran.leaving, ran.saved)
    together = jax.ShapeDtypeStruct(factors.gates.shape[1:], d_ys.dtype)
    out = *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys)), together
    arguments = weights.behind, factors.gates, factors.z, d, d_ys, given(ran.steps.resets), given(ran.steps.mask)
    d, emitted, _ = call_loop(_backward, weights.behind, arguments, out, d_ys.shape[0], d.h.shape)
    return d, emitted, factors
