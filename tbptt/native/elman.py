"""The simple network's steps, with tanh, as two loops, forward and back, compiled for the CPU."""

import jax
from jaxtyping import Array

from tbptt.cells.elman import ElmanBackprop, ElmanCarry
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
def forward(zs, w, h_in, h_start, resets, mask, hs, work, place):  # type: ignore[no-untyped-def]
    """Runs `ElmanBackprop.forward` over steps.

    zs: `[T, N, H]`; w: `Weights.ahead`; h_in, h_start: `[N, H]`, what enters the first step and what a reset one; filled
    in: hs: `[T, N, H]`, what leaves each; work: see `call_loop`; place: which lanes, or units, are to be run.
    """
    wide()
    (T, _, H), lanes = zs.shape, lanes_of(place, h_in)
    for t in range(first_turn(place), T):
        units = units_of(place, t, H)
        if units[0] == H:
            break
        h, before = hs[t], h_in if t == 0 else hs[t - 1]
        enter(h, before, h_start, resets, t, lanes, units)
        a = multiply(work, h, w, lanes, units, place, t)
        for n in range(lanes[0], lanes[1]):
            z, from_h, out = own(zs[t], n, units, 0), own(a, n, units, 0), own(h, n, units, 0)
            for j in range(out.size):
                out[j] = tanh(z[j] + from_h[j])
        hold(h, before, mask, t, lanes, units)


@compiled
def backward(w, hs, d_h, d_ys, resets, mask, h, emitted, work, place):  # type: ignore[no-untyped-def]
    """Runs `ElmanBackprop.linearize` and `ElmanBackprop.backward` from the last step to the first.

    w: `Weights.behind`; hs, d_ys: `[T, N, H]`, what left each step and its output's cotangent; d_h: `[N, H]`, the cotangent
    of what left the last one; filled in: h: `[N, H]`, that of what entered the first; emitted: `[T, N, H]`; work, place:
    as above.
    """
    wide()
    (T, _, H), one, lanes = hs.shape, hs.dtype.type(1), lanes_of(place, d_h)
    begin(h, d_h, lanes, place)
    for turn in range(first_turn(place), T):
        t, units = T - 1 - turn, units_of(place, turn, H)
        if units[0] == H:
            break
        a = emitted[t]
        for n in range(lanes[0], lanes[1]):
            exists = mask.size == 0 or mask[t, n]
            d_a, d_h_n = own(a, n, units, 0), own(h, n, units, 0)
            y, d_y = own(hs[t], n, units, 0), own(d_ys[t], n, units, 0)
            for j in range(d_a.size):
                d_a[j] = (d_h_n[j] + d_y[j]) * (one - y[j] * y[j]) if exists else 0
                d_h_n[j] = 0 if exists else d_h_n[j]
        multiply_back(work, a, w, lanes, units, place, turn)
        increase(h, work, lanes, units)
        clear(h, resets, mask, t, lanes, units)


@inlined
def _run_forward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], kind), w
    carries = matrix(ins[2], kind), matrix(ins[3], kind)
    out = cube(outs[0], kind), matrix(outs[1], kind)
    forward(*weights, *carries, flags(ins[4]), flags(ins[5]), *out, place)


_forward_in_parts, _forward_in_a_pair = in_parts(_run_forward, 1), in_a_pair(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    kept = w, cube(ins[1], kind)
    d = matrix(ins[2], kind), cube(ins[3], kind)
    out = matrix(outs[0], kind), cube(outs[1], kind), matrix(outs[2], kind)
    backward(*kept, *d, flags(ins[4]), flags(ins[5]), *out, place)


_backward_in_parts, _backward_in_a_pair = in_parts(_run_backward, 0), in_a_pair(_run_backward, 0)


def _forward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def elman_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if tiled:
                _forward_in_parts(address, kind)
            else:
                _forward_in_a_pair(address, kind)
        return 0 * sources

    return elman_forward


def _backward(kind, tiled, sources):  # type: ignore[no-untyped-def]
    def elman_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if tiled:
                _backward_in_parts(address, kind)
            else:
                _backward_in_a_pair(address, kind)
        return 0 * sources

    return elman_backward


def call_forward(
    back: ElmanBackprop, keep: bool, weights: Weights, start: ElmanCarry, carry: ElmanCarry, steps: Steps
) -> tuple[ElmanCarry, tuple[()] | None]:
    """Calls `forward`; returns (carries, saved): of tanh nothing need be saved."""
    zs = input_side(steps.xs, weights.params.w_x, weights.params.b, back.compute)
    carries = ElmanCarry(jax.ShapeDtypeStruct(zs.shape, zs.dtype))  # type: ignore[arg-type]
    arguments = zs, weights.ahead, carry, start, given(steps.resets), given(steps.mask)
    carries = call_loop(_forward, weights.ahead, arguments, carries, zs.shape[0], zs.shape[1:])
    return carries, () if keep else None


def call_backward(
    back: ElmanBackprop, weights: Weights, ran: Ran, d: ElmanCarry, d_ys: Array
) -> tuple[ElmanCarry, Array, None]:
    """Calls `backward`; returns (d_entering, emitted, None), as `ElmanBackprop.collect` reads no factors."""
    del back
    out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys))
    arguments = weights.behind, ran.leaving, d, d_ys, given(ran.steps.resets), given(ran.steps.mask)
    return *call_loop(_backward, weights.behind, arguments, out, d_ys.shape[0], d.h.shape), None
