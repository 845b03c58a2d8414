"""The compiled forward and backward loops of `GRU`."""

from typing import Any

import jax
from jaxtyping import Array

from tbptt.backends.numba_cpu.arithmetic import (
    add_rows,
    cols,
    copy_entering,
    copy_rows,
    restore_masked,
    tanh,
    zero_reset,
)
from tbptt.backends.numba_cpu.operations import Weights, call_loop, flags_or_empty, is_packed
from tbptt.backends.numba_cpu.products import multiply, multiply_back
from tbptt.backends.numba_cpu.threads import shard_rows, sharded, unsharded
from tbptt.backends.numba_cpu.xla_ffi import (
    buffers,
    compiled,
    cube,
    flags,
    inlined,
    matrix,
    use_wide_vectors,
)
from tbptt.cells.gru import GRUVJP, GRUCarry, GRUFactors
from tbptt.cells.matmul import project_inputs
from tbptt.unroll.scan import Residuals, Steps


@compiled
def forward(zs, w, b_n, h_in, h_start, resets, mask, hs, gates, ns, ms, work, shard):  # type: ignore[no-untyped-def]
    """Run `GRUVJP.forward` over the steps of a block; fill `hs`, `gates`, `ns` and `ms`.

    zs: `[T, N, G]`, the input projection
    w: `Weights.w_forward`
    b_n: `[1, H]`
    h_in, h_start: `[N, H]`, the carry that enters the first step, and the carry after a reset
    resets, mask: `[T, N]`, or empty
    hs: `[T, N, H]`, the carries that leave the steps
    gates, ns, ms: `[T, N, 2H]`, `[T, N, H]`, `[T, N, H]`; `[1, ...]` if they are not residuals
    work: a workspace, see `call_loop`
    shard: `(index, count)`, see `shard_rows`
    """
    use_wide_vectors()
    (T, _, G), half, rows = zs.shape, zs.dtype.type(0.5), shard_rows(shard, h_in)
    H = G // 3
    for t in range(T):
        s = min(t, gates.shape[0] - 1)
        h, saved, before = hs[t], gates[s], h_in if t == 0 else hs[t - 1]
        copy_entering(h, before, h_start, resets, t, rows)
        a = multiply(work, h, w, rows)
        for n in range(rows[0], rows[1]):
            for gate in range(0, 2 * H, H):
                z, from_h = cols(zs[t], n, gate, H), cols(a, n, gate, H)
                out = cols(saved, n, gate, H)
                for j in range(out.size):
                    out[j] = tanh(half * (z[j] + from_h[j]))
            z, from_h, bias = cols(zs[t], n, 2 * H, H), cols(a, n, 2 * H, H), cols(b_n, 0, 0, H)
            reset, update, h_n = cols(saved, n, 0, H), cols(saved, n, H, H), cols(h, n, 0, H)
            ms_n, ns_n = cols(ms[s], n, 0, H), cols(ns[s], n, 0, H)
            for j in range(h_n.size):
                m = from_h[j] + bias[j]
                new = tanh(z[j] + half * (reset[j] * m + m))
                ms_n[j], ns_n[j] = m, new
                away = h_n[j] - new
                h_n[j] = new + half * (update[j] * away + away)
        restore_masked(h, before, mask, t, rows)


@compiled
def backward(w, gates, zs, d_h, d_ys, resets, mask, h, emitted, gated, work, shard):  # type: ignore[no-untyped-def]
    """Run `GRUVJP.backward` from the last step to the first.

    w: `Weights.w_backward`
    gates, zs: `[T, N, G]` and `[T, N, H]`, fields of `GRUFactors`
    d_h: `[N, H]`, the cotangent of the carry that leaves the last step
    d_ys: `[T, N, H]`, the cotangents of the outputs
    h: `[N, H]`, filled with the cotangent of the carry that enters the first step
    emitted: `[T, N, H]`, filled with the cotangents of the carries
    gated: `[N, G]`, a workspace
    resets, mask, work, shard: as in `forward`
    """
    use_wide_vectors()
    (T, _, G), rows = gates.shape, shard_rows(shard, d_h)
    H = G // 3
    copy_rows(h, d_h, rows)
    for t in range(T - 1, -1, -1):
        out, a = emitted[t], gated
        for n in range(rows[0], rows[1]):
            out_n, h_n = cols(out, n, 0, H), cols(h, n, 0, H)
            d_r, d_z, d_n = cols(a, n, 0, H), cols(a, n, H, H), cols(a, n, 2 * H, H)
            if mask.size > 0 and not mask[t, n]:
                out_n[:], d_r[:], d_z[:], d_n[:] = 0, 0, 0, 0
                continue
            r, z = cols(gates[t], n, 0, H), cols(gates[t], n, H, H)
            new = cols(gates[t], n, 2 * H, H)
            d_y, held = cols(d_ys[t], n, 0, H), cols(zs[t], n, 0, H)
            # One loop per gate: LLVM vectorises a loop only if its arrays cannot overlap.
            for j in range(h_n.size):
                out_n[j] = h_n[j] + d_y[j]
                d_r[j] = out_n[j] * r[j]
                h_n[j] = out_n[j] * held[j]
            for j in range(h_n.size):
                d_z[j] = out_n[j] * z[j]
            for j in range(h_n.size):
                d_n[j] = out_n[j] * new[j]
        multiply_back(work, a, w, rows)
        add_rows(h, work, rows)
        zero_reset(h, resets, mask, t, rows)


@inlined
def _run_forward(w, ins, outs, dtype, shard):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], dtype), w, matrix(ins[2], dtype)
    carries = matrix(ins[3], dtype), matrix(ins[4], dtype)
    out = cube(outs[0], dtype), cube(outs[1], dtype), cube(outs[2], dtype), cube(outs[3], dtype)
    work = matrix(outs[4], dtype)
    forward(*weights, *carries, flags(ins[5]), flags(ins[6]), *out, work, shard)


_forward_sharded, _forward_unsharded = sharded(_run_forward, 1), unsharded(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, dtype, shard):  # type: ignore[no-untyped-def]
    factors = cube(ins[1], dtype), cube(ins[2], dtype)
    d = matrix(ins[3], dtype), cube(ins[4], dtype)
    out = (
        matrix(outs[0], dtype),
        cube(outs[1], dtype),
        matrix(outs[2], dtype),
        matrix(outs[3], dtype),
    )
    backward(w, *factors, *d, flags(ins[5]), flags(ins[6]), *out, shard)


_backward_sharded, _backward_unsharded = sharded(_run_backward, 0), unsharded(_run_backward, 0)


def _forward(dtype, packed, checksum):  # type: ignore[no-untyped-def]
    def gru_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _forward_sharded(address, dtype)
            else:
                _forward_unsharded(address, dtype)
        return 0 * checksum

    return gru_forward


def _backward(dtype, packed, checksum):  # type: ignore[no-untyped-def]
    def gru_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _backward_sharded(address, dtype)
            else:
                _backward_unsharded(address, dtype)
        return 0 * checksum

    return gru_backward


def call_forward(
    cell_vjp: GRUVJP, save: bool, weights: Weights, initial: GRUCarry, carry: GRUCarry, steps: Steps
) -> tuple[GRUCarry, tuple[Array, ...] | None]:
    """Call `forward`; return `(carries, saved)`."""
    zs = project_inputs(steps.xs, weights.params.w_x, weights.params.b, cell_vjp.compute)
    (T, *batch, _), H = zs.shape, carry.h.shape[-1]

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, zs.dtype)

    length = T if save else 1
    saved = shape(length, *batch, 2 * H), shape(length, *batch, H), shape(length, *batch, H)
    arguments = (
        zs,
        weights.w_forward,
        weights.params.b_n,
        carry,
        initial,
        flags_or_empty(steps.resets),
        flags_or_empty(steps.mask),
    )
    carries, saved = call_loop(
        _forward,
        is_packed(weights),
        weights.w_forward,
        arguments,
        (GRUCarry(shape(T, *batch, H)), saved),
        zs.shape[0],
        zs.shape[1:],
    )
    return carries, saved if save else None


def call_backward(
    cell_vjp: GRUVJP, weights: Weights, residuals: Residuals, d: GRUCarry, d_ys: Array
) -> tuple[GRUCarry, Array, GRUFactors]:
    """Call `backward`; return `(d_entering, emitted, factors)`."""
    _, factors = cell_vjp.linearize(
        cell_vjp.prepare(weights.params),
        residuals.steps.xs,
        residuals.entering,
        residuals.leaving,
        residuals.saved,
    )
    together = jax.ShapeDtypeStruct(factors.gates.shape[1:], d_ys.dtype)
    out = *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys)), together
    arguments = (
        weights.w_backward,
        factors.gates,
        factors.z,
        d,
        d_ys,
        flags_or_empty(residuals.steps.resets),
        flags_or_empty(residuals.steps.mask),
    )
    d, emitted, _ = call_loop(
        _backward, is_packed(weights), weights.w_backward, arguments, out, d_ys.shape[0], d.h.shape
    )
    return d, emitted, factors
