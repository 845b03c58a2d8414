"""The LSTM's steps as two loops, forward and back, compiled for the CPU."""

import jax
from jaxtyping import Array

from tbptt.cells.lstm import LSTMBackprop, LSTMCarry
from tbptt.cells.products import input_side
from tbptt.engine.loops import Ran
from tbptt.engine.scan import Steps
from tbptt.native.arithmetic import clear, enter, hold, tanh
from tbptt.native.call import Weights, call_loop, given
from tbptt.native.frame import buffers, compiled, cube, flags, matrix
from tbptt.native.parts import in_parts, lanes_of
from tbptt.native.products import multiply, multiply_back


@compiled
def forward(zs, w, h_in, c_in, h_start, c_start, resets, mask, hs, cs, gates, work, lanes):  # type: ignore[no-untyped-def]
    """Runs `LSTMBackprop.forward` over steps.

    zs: `[T, N, G]`; w: `Weights.ahead`; h_in, c_in, h_start, c_start: `[N, H]`, what enters the first step and what a reset
    one; filled in: hs, cs: `[T, N, H]`, what leaves each; gates: `[T, N, G]`, or `[1, N, G]` where they are not kept; work:
    `[N, at least G]`; lanes: from the first to before the last.
    """
    (T, _, G), one, half = zs.shape, zs.dtype.type(1), zs.dtype.type(0.5)
    H = G // 4
    for t in range(T):
        h, c, a = hs[t], cs[t], gates[min(t, gates.shape[0] - 1)]
        before_h, before_c = (h_in, c_in) if t == 0 else (hs[t - 1], cs[t - 1])
        enter(h, before_h, h_start, resets, t, lanes)
        enter(c, before_c, c_start, resets, t, lanes)
        multiply(work, h, w, lanes)
        for n in range(lanes[0], lanes[1]):
            for j in range(G):
                # As sigmoid(a) = (1 + tanh(a / 2)) / 2, one tanh serves all gates.
                a[n, j] = tanh((zs[t, n, j] + work[n, j]) * (one if 2 * H <= j < 3 * H else half))
            for j in range(H):
                i, f, g, o = a[n, j], a[n, H + j], a[n, 2 * H + j], a[n, 3 * H + j]
                new = half * ((f * c[n, j] + c[n, j]) + (i * g + g))
                leaving = tanh(new)
                c[n, j] = new
                h[n, j] = half * (o * leaving + leaving)
        hold(h, before_h, mask, t, lanes)
        hold(c, before_c, mask, t, lanes)


@compiled
def backward(w, gates, c_in, c_out, d_h, d_c, d_ys, resets, mask, h, c, emitted, work, lanes):  # type: ignore[no-untyped-def]
    """Runs `LSTMBackprop.linearize` and `LSTMBackprop.backward` from the last step to the first.

    w: `Weights.behind`; gates: `[T, N, G]`, saved; c_in, c_out, d_ys: `[T, N, H]`, what entered and left each step; d_h,
    d_c: `[N, H]`, the cotangents of what left the last one; filled in: h, c: `[N, H]`, those of what entered the first;
    emitted: `[T, N, G]`; work: `[N, at least H]`; lanes: as above.
    """
    (T, _, G), one, half, quarter = gates.shape, gates.dtype.type(1), gates.dtype.type(0.5), gates.dtype.type(0.25)
    H = G // 4
    for n in range(lanes[0], lanes[1]):
        for j in range(H):
            h[n, j], c[n, j] = d_h[n, j], d_c[n, j]
    for t in range(T - 1, -1, -1):
        a, saved = emitted[t], gates[t]
        for n in range(lanes[0], lanes[1]):
            if mask.size > 0 and not mask[t, n]:
                for j in range(G):
                    a[n, j] = 0
                continue
            # A loop for every gate: LLVM asks once for all rows whether parts overlap, and those of one loop would.
            # d sigmoid(a) = (1 - t^2) / 4 da for the t that is saved.
            for j in range(H):
                o, out, to_h = saved[n, 3 * H + j], tanh(c_out[t, n, j]), h[n, j] + d_ys[t, n, j]
                a[n, 3 * H + j] = quarter * to_h * out * (one - o * o)
                c[n, j] += to_h * (half * (o + one) * (one - out * out))
                h[n, j] = 0
            for j in range(H):
                i, g = saved[n, j], saved[n, 2 * H + j]
                a[n, j] = quarter * c[n, j] * g * (one - i * i)
            for j in range(H):
                f = saved[n, H + j]
                a[n, H + j] = quarter * c[n, j] * c_in[t, n, j] * (one - f * f)
            for j in range(H):
                i, f, g = saved[n, j], saved[n, H + j], saved[n, 2 * H + j]
                a[n, 2 * H + j] = half * c[n, j] * (i + one) * (one - g * g)
                c[n, j] *= half * (f + one)
        multiply_back(work, a, w, lanes)
        for n in range(lanes[0], lanes[1]):
            for j in range(H):
                h[n, j] += work[n, j]
        clear(h, resets, mask, t, lanes)
        clear(c, resets, mask, t, lanes)


@compiled
def _run_forward(w, ins, outs, kind, part, parts):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], kind), w
    carry = matrix(ins[2], kind), matrix(ins[3], kind)
    start = matrix(ins[4], kind), matrix(ins[5], kind)
    out = cube(outs[0], kind), cube(outs[1], kind), cube(outs[2], kind), matrix(outs[3], kind)
    forward(*weights, *carry, *start, flags(ins[6]), flags(ins[7]), *out, lanes_of(part, parts, out[3]))


_forward_in_parts = in_parts(_run_forward, 1)


@compiled
def _run_backward(w, ins, outs, kind, part, parts):  # type: ignore[no-untyped-def]
    kept = w, cube(ins[1], kind), cube(ins[2], kind), cube(ins[3], kind)
    d = matrix(ins[4], kind), matrix(ins[5], kind), cube(ins[6], kind)
    out = matrix(outs[0], kind), matrix(outs[1], kind), cube(outs[2], kind), matrix(outs[3], kind)
    backward(*kept, *d, flags(ins[7]), flags(ins[8]), *out, lanes_of(part, parts, out[3]))


_backward_in_parts = in_parts(_run_backward, 0)


def _forward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def lstm_forward(address):  # type: ignore[no-untyped-def]
        ins, outs = buffers(address)
        if ins.size > 0:
            if tiled:
                _forward_in_parts(address, kind)
            else:
                _run_forward(matrix(ins[1], kind), ins, outs, kind, 0, 1)
        return 0 * sources

    return lstm_forward


def _backward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def lstm_backward(address):  # type: ignore[no-untyped-def]
        ins, outs = buffers(address)
        if ins.size > 0:
            if tiled:
                _backward_in_parts(address, kind)
            else:
                _run_backward(matrix(ins[0], kind), ins, outs, kind, 0, 1)
        return 0 * sources

    return lstm_backward


def call_forward(
    back: LSTMBackprop, keep: bool, weights: Weights, start: LSTMCarry, carry: LSTMCarry, steps: Steps
) -> tuple[LSTMCarry, Array | None]:
    """Calls `forward`; returns (carries, saved)."""
    zs = input_side(steps.xs, weights.params.w_x, weights.params.b, back.compute)
    carries = jax.tree.map(lambda a: jax.ShapeDtypeStruct((zs.shape[0], *a.shape), a.dtype), carry)
    gates = jax.ShapeDtypeStruct(zs.shape if keep else (1, *zs.shape[1:]), zs.dtype)
    arguments = zs, weights.ahead, carry, start, given(steps.resets), given(steps.mask)
    carries, saved = call_loop(_forward, weights.ahead, arguments, (carries, gates), zs.shape[0], zs.shape[1:])
    return carries, saved if keep else None


def call_backward(
    back: LSTMBackprop, weights: Weights, ran: Ran, d: LSTMCarry, d_ys: Array
) -> tuple[LSTMCarry, Array, None]:
    """Calls `backward`; returns (d_entering, emitted, None), as `LSTMBackprop.collect` reads no factors."""
    gates = back.gates(back.prepare(weights.params), ran.steps.xs, ran.entering) if ran.saved is None else ran.saved
    out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, gates))
    arguments = (
        weights.behind,
        gates,
        ran.entering.c,
        ran.leaving.c,
        d,
        d_ys,
        given(ran.steps.resets),
        given(ran.steps.mask),
    )
    return *call_loop(_backward, weights.behind, arguments, out, d_ys.shape[0], d.h.shape), None
