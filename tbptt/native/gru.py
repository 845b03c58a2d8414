"""The GRU's steps as two loops, forward and back, compiled for the CPU."""

from typing import Any

import jax
from jaxtyping import Array

from tbptt.cells.gru import GRUBackprop, GRUFactors
from tbptt.cells.gru_base import GRUCarry
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
def forward(zs, w, b_n, h_in, h_start, resets, mask, hs, gates, ns, ms, work, place):  # type: ignore[no-untyped-def]
    """Runs `GRUBackprop.forward` over steps.

    zs: `[T, N, G]`; w: `Weights.ahead`; b_n: `[1, H]`; h_in, h_start: `[N, H]`, what enters the first step and what a reset
    one; filled in: hs: `[T, N, H]`, what leaves each; gates: `[T, N, 2H]`, ns, ms: `[T, N, H]`, or `[1, ...]` where they
    are not kept; work: see `call_loop`; place: which lanes, or units, are to be run.
    """
    wide()
    (T, _, G), half, lanes = zs.shape, zs.dtype.type(0.5), lanes_of(place, h_in)
    H = G // 3
    for t in range(first_turn(place), T):
        s, units = min(t, gates.shape[0] - 1), units_of(place, t, H)
        if units[0] == H:
            break
        h, saved, before = hs[t], gates[s], h_in if t == 0 else hs[t - 1]
        enter(h, before, h_start, resets, t, lanes, units)
        a = multiply(work, h, w, lanes, units, place, t)
        for n in range(lanes[0], lanes[1]):
            for gate in range(0, 2 * H, H):
                z, from_h, out = own(zs[t], n, units, gate), own(a, n, units, gate), own(saved, n, units, gate)
                for j in range(out.size):
                    out[j] = tanh(half * (z[j] + from_h[j]))
            z, from_h, bias = own(zs[t], n, units, 2 * H), own(a, n, units, 2 * H), own(b_n, 0, units, 0)
            reset, update, h_n = own(saved, n, units, 0), own(saved, n, units, H), own(h, n, units, 0)
            ms_n, ns_n = own(ms[s], n, units, 0), own(ns[s], n, units, 0)
            for j in range(h_n.size):
                m = from_h[j] + bias[j]
                new = tanh(z[j] + half * (reset[j] * m + m))
                ms_n[j], ns_n[j] = m, new
                away = h_n[j] - new
                h_n[j] = new + half * (update[j] * away + away)
        hold(h, before, mask, t, lanes, units)


@compiled
def backward(w, gates, zs, d_h, d_ys, resets, mask, h, emitted, gated, work, place):  # type: ignore[no-untyped-def]
    """Runs `GRUBackprop.backward` from the last step to the first.

    w: `Weights.behind`; gates: `[T, N, G]` and zs: `[T, N, H]`, of its factors; d_ys: `[T, N, H]`; d_h: `[N, H]`, the
    cotangent of what left the last step; filled in: h: `[N, H]`, that of what entered the first; emitted: `[T, N, H]`;
    gated: `[2, N, G]`, for work: two turns, as another thread may still read the last one's; work, place: as above.
    """
    wide()
    (T, _, G), lanes = gates.shape, lanes_of(place, d_h)
    H = G // 3
    begin(h, d_h, lanes, place)
    for turn in range(first_turn(place), T):
        t, units = T - 1 - turn, units_of(place, turn, H)
        if units[0] == H:
            break
        out, a = emitted[t], gated[turn % 2]
        for n in range(lanes[0], lanes[1]):
            out_n, h_n = own(out, n, units, 0), own(h, n, units, 0)
            d_r, d_z, d_n = own(a, n, units, 0), own(a, n, units, H), own(a, n, units, 2 * H)
            if mask.size > 0 and not mask[t, n]:
                out_n[:], d_r[:], d_z[:], d_n[:] = 0, 0, 0, 0
                continue
            r, z, new = own(gates[t], n, units, 0), own(gates[t], n, units, H), own(gates[t], n, units, 2 * H)
            d_y, held = own(d_ys[t], n, units, 0), own(zs[t], n, units, 0)
            # A loop for every gate: LLVM asks once for all rows whether parts overlap, and those of one loop would.
            for j in range(h_n.size):
                out_n[j] = h_n[j] + d_y[j]
                d_r[j] = out_n[j] * r[j]
                h_n[j] = out_n[j] * held[j]
            for j in range(h_n.size):
                d_z[j] = out_n[j] * z[j]
            for j in range(h_n.size):
                d_n[j] = out_n[j] * new[j]
        multiply_back(work, a, w, lanes, units, place, turn)
        increase(h, work, lanes, units)
        clear(h, resets, mask, t, lanes, units)


@inlined
def _run_forward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], kind), w, matrix(ins[2], kind)
    carries = matrix(ins[3], kind), matrix(ins[4], kind)
    out = cube(outs[0], kind), cube(outs[1], kind), cube(outs[2], kind), cube(outs[3], kind)
    work = matrix(outs[4], kind)
    forward(*weights, *carries, flags(ins[5]), flags(ins[6]), *out, work, place)


_forward_in_parts, _forward_in_a_pair = in_parts(_run_forward, 1), in_a_pair(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    factors = cube(ins[1], kind), cube(ins[2], kind)
    d = matrix(ins[3], kind), cube(ins[4], kind)
    out = matrix(outs[0], kind), cube(outs[1], kind), cube(outs[2], kind), matrix(outs[3], kind)
    backward(w, *factors, *d, flags(ins[5]), flags(ins[6]), *out, place)


_backward_in_parts, _backward_in_a_pair = in_parts(_run_backward, 0), in_a_pair(_run_backward, 0)


def _forward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def gru_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if tiled:
                _forward_in_parts(address, kind)
            else:
                _forward_in_a_pair(address, kind)
        return 0 * sources

    return gru_forward


def _backward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def gru_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if tiled:
                _backward_in_parts(address, kind)
            else:
                _backward_in_a_pair(address, kind)
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
    together = jax.ShapeDtypeStruct((2, *factors.gates.shape[1:]), d_ys.dtype)
    out = *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys)), together
    arguments = weights.behind, factors.gates, factors.z, d, d_ys, given(ran.steps.resets), given(ran.steps.mask)
    d, emitted, _ = call_loop(_backward, weights.behind, arguments, out, d_ys.shape[0], d.h.shape)
    return d, emitted, factors
