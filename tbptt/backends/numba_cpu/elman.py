"""The simple network's steps, with tanh, as two loops, forward and back, compiled for the CPU."""

import jax
from jaxtyping import Array

from tbptt.backends.numba_cpu.arithmetic import begin, clear, enter, hold, increase, own, tanh
from tbptt.backends.numba_cpu.batch_threads import in_one_part, in_parts, rows_of
from tbptt.backends.numba_cpu.operations import Weights, call_loop, given, is_packed
from tbptt.backends.numba_cpu.products import multiply, multiply_back
from tbptt.backends.numba_cpu.vector_width import wide
from tbptt.backends.numba_cpu.xla_ffi import buffers, compiled, cube, flags, inlined, matrix
from tbptt.cells.elman import ElmanCarry, ElmanVJP
from tbptt.cells.matmul import project_inputs
from tbptt.unroll.backend import Residuals
from tbptt.unroll.scan import Steps


@compiled
def forward(zs, w, h_in, h_start, resets, mask, hs, work, place):  # type: ignore[no-untyped-def]
    """Runs `ElmanVJP.forward` over steps.

    zs: `[T, N, H]`; w: `Weights.ahead`; h_in, h_start: `[N, H]`, what enters the first step and what a reset one; filled
    in: hs: `[T, N, H]`, what leaves each; work: see `call_loop`; place: `(part, parts)`, which rows of the batch to run.
    """
    wide()
    (T, _, H), rows = zs.shape, rows_of(place, h_in)
    for t in range(T):
        h, before = hs[t], h_in if t == 0 else hs[t - 1]
        enter(h, before, h_start, resets, t, rows)
        a = multiply(work, h, w, rows)
        for n in range(rows[0], rows[1]):
            z, from_h, out = own(zs[t], n, 0, H), own(a, n, 0, H), own(h, n, 0, H)
            for j in range(out.size):
                out[j] = tanh(z[j] + from_h[j])
        hold(h, before, mask, t, rows)


@compiled
def backward(w, hs, d_h, d_ys, resets, mask, h, emitted, work, place):  # type: ignore[no-untyped-def]
    """Runs `ElmanVJP.linearize` and `ElmanVJP.backward` from the last step to the first.

    w: `Weights.behind`; hs, d_ys: `[T, N, H]`, what left each step and its output's cotangent; d_h: `[N, H]`, the cotangent
    of what left the last one; filled in: h: `[N, H]`, that of what entered the first; emitted: `[T, N, H]`; work, place:
    as above.
    """
    wide()
    (T, _, H), one, rows = hs.shape, hs.dtype.type(1), rows_of(place, d_h)
    begin(h, d_h, rows)
    for t in range(T - 1, -1, -1):
        a = emitted[t]
        for n in range(rows[0], rows[1]):
            exists = mask.size == 0 or mask[t, n]
            d_a, d_h_n = own(a, n, 0, H), own(h, n, 0, H)
            y, d_y = own(hs[t], n, 0, H), own(d_ys[t], n, 0, H)
            for j in range(d_a.size):
                d_a[j] = (d_h_n[j] + d_y[j]) * (one - y[j] * y[j]) if exists else 0
                d_h_n[j] = 0 if exists else d_h_n[j]
        multiply_back(work, a, w, rows)
        increase(h, work, rows)
        clear(h, resets, mask, t, rows)


@inlined
def _run_forward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], kind), w
    carries = matrix(ins[2], kind), matrix(ins[3], kind)
    out = cube(outs[0], kind), matrix(outs[1], kind)
    forward(*weights, *carries, flags(ins[4]), flags(ins[5]), *out, place)


_forward_in_parts, _forward_in_one_part = in_parts(_run_forward, 1), in_one_part(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, kind, place):  # type: ignore[no-untyped-def]
    kept = w, cube(ins[1], kind)
    d = matrix(ins[2], kind), cube(ins[3], kind)
    out = matrix(outs[0], kind), cube(outs[1], kind), matrix(outs[2], kind)
    backward(*kept, *d, flags(ins[4]), flags(ins[5]), *out, place)


_backward_in_parts, _backward_in_one_part = in_parts(_run_backward, 0), in_one_part(_run_backward, 0)


def _forward(kind, packed, sources):  # type: ignore[no-untyped-def]
    def elman_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _forward_in_parts(address, kind)
            else:
                _forward_in_one_part(address, kind)
        return 0 * sources

    return elman_forward


def _backward(kind, packed, sources):  # type: ignore[no-untyped-def]
    def elman_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _backward_in_parts(address, kind)
            else:
                _backward_in_one_part(address, kind)
        return 0 * sources

    return elman_backward


def call_forward(
    cell_vjp: ElmanVJP, keep: bool, weights: Weights, start: ElmanCarry, carry: ElmanCarry, steps: Steps
) -> tuple[ElmanCarry, tuple[()] | None]:
    """Calls `forward`; returns (carries, saved): of tanh nothing need be saved."""
    zs = project_inputs(steps.xs, weights.params.w_x, weights.params.b, cell_vjp.compute)
    carries = ElmanCarry(jax.ShapeDtypeStruct(zs.shape, zs.dtype))  # type: ignore[arg-type]
    arguments = zs, weights.ahead, carry, start, given(steps.resets), given(steps.mask)
    carries = call_loop(_forward, is_packed(weights), weights.ahead, arguments, carries, zs.shape[0], zs.shape[1:])
    return carries, () if keep else None


def call_backward(
    cell_vjp: ElmanVJP, weights: Weights, residuals: Residuals, d: ElmanCarry, d_ys: Array
) -> tuple[ElmanCarry, Array, None]:
    """Calls `backward`; returns (d_entering, emitted, None), as `ElmanVJP.collect` reads no factors."""
    del cell_vjp
    out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys))
    arguments = weights.behind, residuals.leaving, d, d_ys, given(residuals.steps.resets), given(residuals.steps.mask)
    return *call_loop(_backward, is_packed(weights), weights.behind, arguments, out, d_ys.shape[0], d.h.shape), None
