"""The LSTM's steps as two loops, forward and back, compiled for the CPU."""

import jax
from jaxtyping import Array

from tbptt.cells.lstm import LSTMBackprop, LSTMCarry
from tbptt.cells.products import input_side
from tbptt.engine.loops import Ran
from tbptt.engine.scan import Steps
from tbptt.native.arithmetic import begin, clear, enter, hold, increase, own, tanh
from tbptt.native.call import Weights, call_loop, given
from tbptt.native.frame import buffers, compiled, cube, flags, inlined, matrix
from tbptt.native.pairs import first_turn, in_a_pair, units_of
from tbptt.native.parts import in_parts, lanes_of
from tbptt.native.products import multiply, multiply_back
from tbptt.native.width import wide


@compiled
def forward(zs, w, h_in, c_in, h_start, c_start, resets, mask, hs, cs, gates, work, place):  # type: ignore[no-untyped-def]
    """Runs `LSTMBackprop.forward` over steps.

    zs: `[T, N, G]`; w: `Weights.ahead`; h_in, c_in, h_start, c_start: `[N, H]`, what enters the first step and what a reset
    one; filled in: hs, cs: `[T, N, H]`, what leaves each; gates: `[T, N, G]`, or `[1, N, G]` where they are not kept; work:
    see `call_loop`; place: which lanes, or units, are to be run.
    """
    wide()
    (T, _, G), one, half, lanes = zs.shape, zs.dtype.type(1), zs.dtype.type(0.5), lanes_of(place, h_in)
    H = G // 4
    for t in range(first_turn(place), T):
        units = units_of(place, t, H)
        if units[0] == H:
            break
        h, c, a = hs[t], cs[t], gates[min(t, gates.shape[0] - 1)]
        before_h, before_c = (h_in, c_in) if t == 0 else (hs[t - 1], cs[t - 1])
        enter(h, before_h, h_start, resets, t, lanes, units)
        enter(c, before_c, c_start, resets, t, lanes, units)
        fed = multiply(work, h, w, lanes, units, place, t)
        for n in range(lanes[0], lanes[1]):
            for gate in range(0, G, H):
                scale = one if gate == 2 * H else half  # as sigmoid(a) = (1 + tanh(a / 2)) / 2, one tanh serves all gates
                z, from_h, out = own(zs[t], n, units, gate), own(fed, n, units, gate), own(a, n, units, gate)
                for j in range(out.size):
                    out[j] = tanh((z[j] + from_h[j]) * scale)
            i, f, g, o = own(a, n, units, 0), own(a, n, units, H), own(a, n, units, 2 * H), own(a, n, units, 3 * H)
            c_n, h_n = own(c, n, units, 0), own(h, n, units, 0)
            for j in range(h_n.size):
                new = half * ((f[j] * c_n[j] + c_n[j]) + (i[j] * g[j] + g[j]))
                leaving = tanh(new)
                c_n[j] = new
                h_n[j] = half * (o[j] * leaving + leaving)
        hold(h, before_h, mask, t, lanes, units)
        hold(c, before_c, mask, t, lanes, units)


@compiled
def backward(w, gates, c_in, c_out, d_h, d_c, d_ys, resets, mask, h, c, emitted, work, place):  # type: ignore[no-untyped-def]
    """Runs `LSTMBackprop.linearize` and `LSTMBackprop.backward` from the last step to the first.

    w: `Weights.behind`; gates: `[T, N, G]`, saved; c_in, c_out, d_ys: `[T, N, H]`, what entered and left each step; d_h,
    d_c: `[N, H]`, the cotangents of what left the last one; filled in: h, c: `[N, H]`, those of what entered the first;
    emitted: `[T, N, G]`; work, place: as above.
    """
    wide()
    (T, _, G), one, half, quarter = gates.shape, gates.dtype.type(1), gates.dtype.type(0.5), gates.dtype.type(0.25)
    H, lanes = G // 4, lanes_of(place, d_h)
    begin(h, d_h, lanes, place)
    begin(c, d_c, lanes, place)
    for turn in range(first_turn(place), T):
        t, units = T - 1 - turn, units_of(place, turn, H)
        if units[0] == H:
            break
        a, saved = emitted[t], gates[t]
        for n in range(lanes[0], lanes[1]):
            d_i, d_f, d_g, d_o = own(a, n, units, 0), own(a, n, units, H), own(a, n, units, 2 * H), own(a, n, units, 3 * H)
            if mask.size > 0 and not mask[t, n]:
                d_i[:], d_f[:], d_g[:], d_o[:] = 0, 0, 0, 0
                continue
            i, f = own(saved, n, units, 0), own(saved, n, units, H)
            g, o = own(saved, n, units, 2 * H), own(saved, n, units, 3 * H)
            h_n, c_n, d_y = own(h, n, units, 0), own(c, n, units, 0), own(d_ys[t], n, units, 0)
            entering, leaving = own(c_in[t], n, units, 0), own(c_out[t], n, units, 0)
            # A loop for every gate: LLVM asks once for all rows whether parts overlap, and those of one loop would.
            # d sigmoid(a) = (1 - t^2) / 4 da for the t that is saved.
            for j in range(h_n.size):
                out, to_h = tanh(leaving[j]), h_n[j] + d_y[j]
                d_o[j] = quarter * to_h * out * (one - o[j] * o[j])
                c_n[j] += to_h * (half * (o[j] + one) * (one - out * out))
                h_n[j] = 0
            for j in range(h_n.size):
                d_i[j] = quarter * c_n[j] * g[j] * (one - i[j] * i[j])
            for j in range(h_n.size):
                d_f[j] = quarter * c_n[j] * entering[j] * (one - f[j] * f[j])
            for j in range(h_n.size):
                d_g[j] = half * c_n[j] * (i[j] + one) * (one - g[j] * g[j])
                c_n[j] *= half * (f[j] + one)
        multiply_back(work, a, w, lanes, units, place, turn)
        increase(h, work, lanes, units)
        clear(h, resets, mask, t, lanes, units)
        clear(c, resets, mask, t, lanes, units)


@inlined
def _run_forward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], kind), w
    carry = matrix(ins[2], kind), matrix(ins[3], kind)
    start = matrix(ins[4], kind), matrix(ins[5], kind)
    out = cube(outs[0], kind), cube(outs[1], kind), cube(outs[2], kind), matrix(outs[3], kind)
    forward(*weights, *carry, *start, flags(ins[6]), flags(ins[7]), *out, place)


_forward_in_parts, _forward_in_a_pair = in_parts(_run_forward, 1), in_a_pair(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    kept = w, cube(ins[1], kind), cube(ins[2], kind), cube(ins[3], kind)
    d = matrix(ins[4], kind), matrix(ins[5], kind), cube(ins[6], kind)
    out = matrix(outs[0], kind), matrix(outs[1], kind), cube(outs[2], kind), matrix(outs[3], kind)
    backward(*kept, *d, flags(ins[7]), flags(ins[8]), *out, place)


_backward_in_parts, _backward_in_a_pair = in_parts(_run_backward, 0), in_a_pair(_run_backward, 0)


def _forward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def lstm_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if tiled:
                _forward_in_parts(address, kind)
            else:
                _forward_in_a_pair(address, kind)
        return 0 * sources

    return lstm_forward


def _backward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def lstm_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if tiled:
                _backward_in_parts(address, kind)
            else:
                _backward_in_a_pair(address, kind)
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
