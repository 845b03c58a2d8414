"""The GRU's steps as two loops, forward and back, compiled for the CPU."""

from typing import Any

import jax
from jaxtyping import Array

from tbptt.backends.numba_cpu.arithmetic import begin, clear, enter, hold, increase, own, tanh
from tbptt.backends.numba_cpu.batch_threads import in_one_part, in_parts, rows_of
from tbptt.backends.numba_cpu.operations import Weights, call_loop, given, is_packed
from tbptt.backends.numba_cpu.products import multiply, multiply_back
from tbptt.backends.numba_cpu.vector_width import wide
from tbptt.backends.numba_cpu.xla_ffi import buffers, compiled, cube, flags, inlined, matrix
from tbptt.cells.gru import GRUVJP, GRUCarry, GRUFactors
from tbptt.cells.matmul import project_inputs
from tbptt.unroll.backend import Residuals
from tbptt.unroll.scan import Steps


@compiled
def forward(zs, w, b_n, h_in, h_start, resets, mask, hs, gates, ns, ms, work, place):  # type: ignore[no-untyped-def]
    """Runs `GRUVJP.forward` over steps.

    zs: `[T, N, G]`; w: `Weights.ahead`; b_n: `[1, H]`; h_in, h_start: `[N, H]`, what enters the first step and what a reset
    one; filled in: hs: `[T, N, H]`, what leaves each; gates: `[T, N, 2H]`, ns, ms: `[T, N, H]`, or `[1, ...]` where they
    are not kept; work: see `call_loop`; place: `(part, parts)`, which rows of the batch to run.
    """
    wide()
    (T, _, G), half, rows = zs.shape, zs.dtype.type(0.5), rows_of(place, h_in)
    H = G // 3
    for t in range(T):
        s = min(t, gates.shape[0] - 1)
        h, saved, before = hs[t], gates[s], h_in if t == 0 else hs[t - 1]
        enter(h, before, h_start, resets, t, rows)
        a = multiply(work, h, w, rows)
        for n in range(rows[0], rows[1]):
            for gate in range(0, 2 * H, H):
                z, from_h, out = own(zs[t], n, gate, H), own(a, n, gate, H), own(saved, n, gate, H)
                for j in range(out.size):
                    out[j] = tanh(half * (z[j] + from_h[j]))
            z, from_h, bias = own(zs[t], n, 2 * H, H), own(a, n, 2 * H, H), own(b_n, 0, 0, H)
            reset, update, h_n = own(saved, n, 0, H), own(saved, n, H, H), own(h, n, 0, H)
            ms_n, ns_n = own(ms[s], n, 0, H), own(ns[s], n, 0, H)
            for j in range(h_n.size):
                m = from_h[j] + bias[j]
                new = tanh(z[j] + half * (reset[j] * m + m))
                ms_n[j], ns_n[j] = m, new
                away = h_n[j] - new
                h_n[j] = new + half * (update[j] * away + away)
        hold(h, before, mask, t, rows)


@compiled
def backward(w, gates, zs, d_h, d_ys, resets, mask, h, emitted, gated, work, place):  # type: ignore[no-untyped-def]
    """Runs `GRUVJP.backward` from the last step to the first.

    w: `Weights.behind`; gates: `[T, N, G]` and zs: `[T, N, H]`, of its factors; d_ys: `[T, N, H]`; d_h: `[N, H]`, the
    cotangent of what left the last step; filled in: h: `[N, H]`, that of what entered the first; emitted: `[T, N, H]`;
    gated: `[N, G]`, workspace; work, place: as above.
    """
    wide()
    (T, _, G), rows = gates.shape, rows_of(place, d_h)
    H = G // 3
    begin(h, d_h, rows)
    for t in range(T - 1, -1, -1):
        out, a = emitted[t], gated
        for n in range(rows[0], rows[1]):
            out_n, h_n = own(out, n, 0, H), own(h, n, 0, H)
            d_r, d_z, d_n = own(a, n, 0, H), own(a, n, H, H), own(a, n, 2 * H, H)
            if mask.size > 0 and not mask[t, n]:
                out_n[:], d_r[:], d_z[:], d_n[:] = 0, 0, 0, 0
                continue
            r, z, new = own(gates[t], n, 0, H), own(gates[t], n, H, H), own(gates[t], n, 2 * H, H)
            d_y, held = own(d_ys[t], n, 0, H), own(zs[t], n, 0, H)
            # A loop for every gate: LLVM asks once for all rows whether parts overlap, and those of one loop would.
            for j in range(h_n.size):
                out_n[j] = h_n[j] + d_y[j]
                d_r[j] = out_n[j] * r[j]
                h_n[j] = out_n[j] * held[j]
            for j in range(h_n.size):
                d_z[j] = out_n[j] * z[j]
            for j in range(h_n.size):
                d_n[j] = out_n[j] * new[j]
        multiply_back(work, a, w, rows)
        increase(h, work, rows)
        clear(h, resets, mask, t, rows)


@inlined
def _run_forward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], kind), w, matrix(ins[2], kind)
    carries = matrix(ins[3], kind), matrix(ins[4], kind)
    out = cube(outs[0], kind), cube(outs[1], kind), cube(outs[2], kind), cube(outs[3], kind)
    work = matrix(outs[4], kind)
    forward(*weights, *carries, flags(ins[5]), flags(ins[6]), *out, work, place)


_forward_in_parts, _forward_in_one_part = in_parts(_run_forward, 1), in_one_part(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    factors = cube(ins[1], kind), cube(ins[2], kind)
    d = matrix(ins[3], kind), cube(ins[4], kind)
    out = matrix(outs[0], kind), cube(outs[1], kind), matrix(outs[2], kind), matrix(outs[3], kind)
    backward(w, *factors, *d, flags(ins[5]), flags(ins[6]), *out, place)


_backward_in_parts, _backward_in_one_part = in_parts(_run_backward, 0), in_one_part(_run_backward, 0)


def _forward(kind, packed, sources):  # type: ignore[no-untyped-def]
    def gru_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _forward_in_parts(address, kind)
            else:
                _forward_in_one_part(address, kind)
        return 0 * sources

    return gru_forward


def _backward(kind, packed, sources):  # type: ignore[no-untyped-def]
    def gru_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _backward_in_parts(address, kind)
            else:
                _backward_in_one_part(address, kind)
        return 0 * sources

    return gru_backward


def call_forward(
    cell_vjp: GRUVJP, keep: bool, weights: Weights, start: GRUCarry, carry: GRUCarry, steps: Steps
) -> tuple[GRUCarry, tuple[Array, ...] | None]:
    """Calls `forward`; returns (carries, saved)."""
    zs = project_inputs(steps.xs, weights.params.w_x, weights.params.b, cell_vjp.compute)
    (T, *batch, _), H = zs.shape, carry.h.shape[-1]

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, zs.dtype)

    kept = T if keep else 1
    saved = shape(kept, *batch, 2 * H), shape(kept, *batch, H), shape(kept, *batch, H)
    arguments = zs, weights.ahead, weights.params.b_n, carry, start, given(steps.resets), given(steps.mask)
    carries, saved = call_loop(
        _forward,
        is_packed(weights),
        weights.ahead,
        arguments,
        (GRUCarry(shape(T, *batch, H)), saved),
        zs.shape[0],
        zs.shape[1:],
    )
    return carries, saved if keep else None


def call_backward(
    cell_vjp: GRUVJP, weights: Weights, residuals: Residuals, d: GRUCarry, d_ys: Array
) -> tuple[GRUCarry, Array, GRUFactors]:
    """Calls `backward`; returns (d_entering, emitted, factors)."""
    _, factors = cell_vjp.linearize(
        cell_vjp.prepare(weights.params), residuals.steps.xs, residuals.entering, residuals.leaving, residuals.saved
    )
    together = jax.ShapeDtypeStruct(factors.gates.shape[1:], d_ys.dtype)
    out = *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys)), together
    arguments = (
        weights.behind,
        factors.gates,
        factors.z,
        d,
        d_ys,
        given(residuals.steps.resets),
        given(residuals.steps.mask),
    )
    d, emitted, _ = call_loop(_backward, is_packed(weights), weights.behind, arguments, out, d_ys.shape[0], d.h.shape)
    return d, emitted, factors
