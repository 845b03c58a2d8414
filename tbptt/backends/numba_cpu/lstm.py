"""The LSTM's steps as two loops, forward and back, compiled for the CPU."""

import jax
from jaxtyping import Array

from tbptt.backends.numba_cpu.arithmetic import begin, clear, enter, hold, increase, own, tanh
from tbptt.backends.numba_cpu.batch_threads import in_one_part, in_parts, rows_of
from tbptt.backends.numba_cpu.operations import Weights, call_loop, given, is_packed
from tbptt.backends.numba_cpu.products import multiply, multiply_back
from tbptt.backends.numba_cpu.vector_width import wide
from tbptt.backends.numba_cpu.xla_ffi import buffers, compiled, cube, flags, inlined, matrix
from tbptt.cells.lstm import LSTMVJP, LSTMCarry
from tbptt.cells.matmul import project_inputs
from tbptt.unroll.backend import Residuals
from tbptt.unroll.scan import Steps


@compiled
def forward(zs, w, h_in, c_in, h_start, c_start, resets, mask, hs, cs, gates, work, place):  # type: ignore[no-untyped-def]
    """Runs `LSTMVJP.forward` over steps.

    zs: `[T, N, G]`; w: `Weights.ahead`; h_in, c_in, h_start, c_start: `[N, H]`, what enters the first step and what a reset
    one; filled in: hs, cs: `[T, N, H]`, what leaves each; gates: `[T, N, G]`, or `[1, N, G]` where they are not kept; work:
    see `call_loop`; place: `(part, parts)`, which rows of the batch to run.
    """
    wide()
    (T, _, G), one, half, rows = zs.shape, zs.dtype.type(1), zs.dtype.type(0.5), rows_of(place, h_in)
    H = G // 4
    for t in range(T):
        h, c, a = hs[t], cs[t], gates[min(t, gates.shape[0] - 1)]
        before_h, before_c = (h_in, c_in) if t == 0 else (hs[t - 1], cs[t - 1])
        enter(h, before_h, h_start, resets, t, rows)
        enter(c, before_c, c_start, resets, t, rows)
        fed = multiply(work, h, w, rows)
        for n in range(rows[0], rows[1]):
            for gate in range(0, G, H):
                scale = one if gate == 2 * H else half  # as sigmoid(a) = (1 + tanh(a / 2)) / 2, one tanh serves all gates
                z, from_h, out = own(zs[t], n, gate, H), own(fed, n, gate, H), own(a, n, gate, H)
                for j in range(out.size):
                    out[j] = tanh((z[j] + from_h[j]) * scale)
            i, f, g, o = own(a, n, 0, H), own(a, n, H, H), own(a, n, 2 * H, H), own(a, n, 3 * H, H)
            c_n, h_n = own(c, n, 0, H), own(h, n, 0, H)
            for j in range(h_n.size):
                new = half * ((f[j] * c_n[j] + c_n[j]) + (i[j] * g[j] + g[j]))
                leaving = tanh(new)
                c_n[j] = new
                h_n[j] = half * (o[j] * leaving + leaving)
        hold(h, before_h, mask, t, rows)
        hold(c, before_c, mask, t, rows)


@compiled
def backward(w, gates, c_in, c_out, d_h, d_c, d_ys, resets, mask, h, c, emitted, work, place):  # type: ignore[no-untyped-def]
    """Runs `LSTMVJP.linearize` and `LSTMVJP.backward` from the last step to the first.

    w: `Weights.behind`; gates: `[T, N, G]`, saved; c_in, c_out, d_ys: `[T, N, H]`, what entered and left each step; d_h,
    d_c: `[N, H]`, the cotangents of what left the last one; filled in: h, c: `[N, H]`, those of what entered the first;
    emitted: `[T, N, G]`; work, place: as above.
    """
    wide()
    (T, _, G), one, half, quarter = gates.shape, gates.dtype.type(1), gates.dtype.type(0.5), gates.dtype.type(0.25)
    H, rows = G // 4, rows_of(place, d_h)
    begin(h, d_h, rows)
    begin(c, d_c, rows)
    for t in range(T - 1, -1, -1):
        a, saved = emitted[t], gates[t]
        for n in range(rows[0], rows[1]):
            d_i, d_f, d_g, d_o = own(a, n, 0, H), own(a, n, H, H), own(a, n, 2 * H, H), own(a, n, 3 * H, H)
            if mask.size > 0 and not mask[t, n]:
                d_i[:], d_f[:], d_g[:], d_o[:] = 0, 0, 0, 0
                continue
            i, f = own(saved, n, 0, H), own(saved, n, H, H)
            g, o = own(saved, n, 2 * H, H), own(saved, n, 3 * H, H)
            h_n, c_n, d_y = own(h, n, 0, H), own(c, n, 0, H), own(d_ys[t], n, 0, H)
            entering, leaving = own(c_in[t], n, 0, H), own(c_out[t], n, 0, H)
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
        multiply_back(work, a, w, rows)
        increase(h, work, rows)
        clear(h, resets, mask, t, rows)
        clear(c, resets, mask, t, rows)


@inlined
def _run_forward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], kind), w
    carry = matrix(ins[2], kind), matrix(ins[3], kind)
    start = matrix(ins[4], kind), matrix(ins[5], kind)
    out = cube(outs[0], kind), cube(outs[1], kind), cube(outs[2], kind), matrix(outs[3], kind)
    forward(*weights, *carry, *start, flags(ins[6]), flags(ins[7]), *out, place)


_forward_in_parts, _forward_in_one_part = in_parts(_run_forward, 1), in_one_part(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    kept = w, cube(ins[1], kind), cube(ins[2], kind), cube(ins[3], kind)
    d = matrix(ins[4], kind), matrix(ins[5], kind), cube(ins[6], kind)
    out = matrix(outs[0], kind), matrix(outs[1], kind), cube(outs[2], kind), matrix(outs[3], kind)
    backward(*kept, *d, flags(ins[7]), flags(ins[8]), *out, place)


_backward_in_parts, _backward_in_one_part = in_parts(_run_backward, 0), in_one_part(_run_backward, 0)


def _forward(kind, packed, sources):  # type: ignore[no-untyped-def]
    def lstm_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _forward_in_parts(address, kind)
            else:
                _forward_in_one_part(address, kind)
        return 0 * sources

    return lstm_forward


def _backward(kind, packed, sources):  # type: ignore[no-untyped-def]
    def lstm_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _backward_in_parts(address, kind)
            else:
                _backward_in_one_part(address, kind)
        return 0 * sources

    return lstm_backward


def call_forward(
    cell_vjp: LSTMVJP, keep: bool, weights: Weights, start: LSTMCarry, carry: LSTMCarry, steps: Steps
) -> tuple[LSTMCarry, Array | None]:
    """Calls `forward`; returns (carries, saved)."""
    zs = project_inputs(steps.xs, weights.params.w_x, weights.params.b, cell_vjp.compute)
    carries = jax.tree.map(lambda a: jax.ShapeDtypeStruct((zs.shape[0], *a.shape), a.dtype), carry)
    gates = jax.ShapeDtypeStruct(zs.shape if keep else (1, *zs.shape[1:]), zs.dtype)
    arguments = zs, weights.ahead, carry, start, given(steps.resets), given(steps.mask)
    carries, saved = call_loop(
        _forward, is_packed(weights), weights.ahead, arguments, (carries, gates), zs.shape[0], zs.shape[1:]
    )
    return carries, saved if keep else None


def call_backward(
    cell_vjp: LSTMVJP, weights: Weights, residuals: Residuals, d: LSTMCarry, d_ys: Array
) -> tuple[LSTMCarry, Array, None]:
    """Calls `backward`; returns (d_entering, emitted, None), as `LSTMVJP.collect` reads no factors."""
    gates = (
        cell_vjp.gates(cell_vjp.prepare(weights.params), residuals.steps.xs, residuals.entering)
        if residuals.saved is None
        else residuals.saved
    )
    out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, gates))
    arguments = (
        weights.behind,
        gates,
        residuals.entering.c,
        residuals.leaving.c,
        d,
        d_ys,
        given(residuals.steps.resets),
        given(residuals.steps.mask),
    )
    return *call_loop(_backward, is_packed(weights), weights.behind, arguments, out, d_ys.shape[0], d.h.shape), None
