"""The compiled forward and backward loops of `LSTM`."""

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
from tbptt.cells.lstm import LSTMVJP, LSTMCarry
from tbptt.cells.matmul import project_inputs
from tbptt.unroll.scan import Residuals, Steps


@compiled
def forward(zs, w, h_in, c_in, h_start, c_start, resets, mask, hs, cs, gates, work, shard):  # type: ignore[no-untyped-def]
    """Run `LSTMVJP.forward` over the steps of a block; fill `hs`, `cs` and `gates`.

    zs: `[T, N, G]`, the input projection
    w: `Weights.w_forward`
    h_in, c_in: `[N, H]`, the carry that enters the first step
    h_start, c_start: `[N, H]`, the carry after a reset
    resets, mask: `[T, N]`, or empty
    hs, cs: `[T, N, H]`, the carries that leave the steps
    gates: `[T, N, G]`, or `[1, N, G]` if the gates are not residuals
    work: a workspace, see `call_loop`
    shard: `(index, count)`, see `shard_rows`
    """
    use_wide_vectors()
    (T, _, G), one, half = zs.shape, zs.dtype.type(1), zs.dtype.type(0.5)
    rows = shard_rows(shard, h_in)
    H = G // 4
    for t in range(T):
        h, c, a = hs[t], cs[t], gates[min(t, gates.shape[0] - 1)]
        before_h, before_c = (h_in, c_in) if t == 0 else (hs[t - 1], cs[t - 1])
        copy_entering(h, before_h, h_start, resets, t, rows)
        copy_entering(c, before_c, c_start, resets, t, rows)
        fed = multiply(work, h, w, rows)
        for n in range(rows[0], rows[1]):
            for gate in range(0, G, H):
                scale = one if gate == 2 * H else half  # sigmoid(a) = (1 + tanh(a / 2)) / 2
                z, from_h, out = cols(zs[t], n, gate, H), cols(fed, n, gate, H), cols(a, n, gate, H)
                for j in range(out.size):
                    out[j] = tanh((z[j] + from_h[j]) * scale)
            i, f, g = cols(a, n, 0, H), cols(a, n, H, H), cols(a, n, 2 * H, H)
            o = cols(a, n, 3 * H, H)
            c_n, h_n = cols(c, n, 0, H), cols(h, n, 0, H)
            for j in range(h_n.size):
                new = half * ((f[j] * c_n[j] + c_n[j]) + (i[j] * g[j] + g[j]))
                leaving = tanh(new)
                c_n[j] = new
                h_n[j] = half * (o[j] * leaving + leaving)
        restore_masked(h, before_h, mask, t, rows)
        restore_masked(c, before_c, mask, t, rows)


@compiled
def backward(w, gates, c_in, c_out, d_h, d_c, d_ys, resets, mask, h, c, emitted, work, shard):  # type: ignore[no-untyped-def]
    """Run `LSTMVJP.linearize` and `backward` from the last step to the first.

    w: `Weights.w_backward`
    gates: `[T, N, G]`, as `forward` saved them
    c_in, c_out: `[T, N, H]`, the cell states that enter and leave the steps
    d_h, d_c: `[N, H]`, the cotangents of the carry that leaves the last step
    d_ys: `[T, N, H]`, the cotangents of the outputs
    h, c: `[N, H]`, filled with the cotangents of the carry that enters the first step
    emitted: `[T, N, G]`, filled with the cotangents of the pre-activations
    resets, mask, work, shard: as in `forward`
    """
    use_wide_vectors()
    (T, _, G), one, half = gates.shape, gates.dtype.type(1), gates.dtype.type(0.5)
    quarter = gates.dtype.type(0.25)
    H, rows = G // 4, shard_rows(shard, d_h)
    copy_rows(h, d_h, rows)
    copy_rows(c, d_c, rows)
    for t in range(T - 1, -1, -1):
        a, saved = emitted[t], gates[t]
        for n in range(rows[0], rows[1]):
            d_i, d_f, d_g = cols(a, n, 0, H), cols(a, n, H, H), cols(a, n, 2 * H, H)
            d_o = cols(a, n, 3 * H, H)
            if mask.size > 0 and not mask[t, n]:
                d_i[:], d_f[:], d_g[:], d_o[:] = 0, 0, 0, 0
                continue
            i, f = cols(saved, n, 0, H), cols(saved, n, H, H)
            g, o = cols(saved, n, 2 * H, H), cols(saved, n, 3 * H, H)
            h_n, c_n, d_y = cols(h, n, 0, H), cols(c, n, 0, H), cols(d_ys[t], n, 0, H)
            entering, leaving = cols(c_in[t], n, 0, H), cols(c_out[t], n, 0, H)
            # One loop per gate: LLVM vectorises a loop only if its arrays cannot overlap.
            # d sigmoid(a) = (1 - t^2) / 4 da, with the saved t.
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
        add_rows(h, work, rows)
        zero_reset(h, resets, mask, t, rows)
        zero_reset(c, resets, mask, t, rows)


@inlined
def _run_forward(w, ins, outs, dtype, shard):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], dtype), w
    carry = matrix(ins[2], dtype), matrix(ins[3], dtype)
    start = matrix(ins[4], dtype), matrix(ins[5], dtype)
    out = cube(outs[0], dtype), cube(outs[1], dtype), cube(outs[2], dtype), matrix(outs[3], dtype)
    forward(*weights, *carry, *start, flags(ins[6]), flags(ins[7]), *out, shard)


_forward_sharded, _forward_unsharded = sharded(_run_forward, 1), unsharded(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, dtype, shard):  # type: ignore[no-untyped-def]
    saved = w, cube(ins[1], dtype), cube(ins[2], dtype), cube(ins[3], dtype)
    d = matrix(ins[4], dtype), matrix(ins[5], dtype), cube(ins[6], dtype)
    out = (
        matrix(outs[0], dtype),
        matrix(outs[1], dtype),
        cube(outs[2], dtype),
        matrix(outs[3], dtype),
    )
    backward(*saved, *d, flags(ins[7]), flags(ins[8]), *out, shard)


_backward_sharded, _backward_unsharded = sharded(_run_backward, 0), unsharded(_run_backward, 0)


def _forward(dtype, packed, checksum):  # type: ignore[no-untyped-def]
    def lstm_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _forward_sharded(address, dtype)
            else:
                _forward_unsharded(address, dtype)
        return 0 * checksum

    return lstm_forward


def _backward(dtype, packed, checksum):  # type: ignore[no-untyped-def]
    def lstm_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _backward_sharded(address, dtype)
            else:
                _backward_unsharded(address, dtype)
        return 0 * checksum

    return lstm_backward


def call_forward(
    cell_vjp: LSTMVJP,
    save: bool,
    weights: Weights,
    initial: LSTMCarry,
    carry: LSTMCarry,
    steps: Steps,
) -> tuple[LSTMCarry, Array | None]:
    """Call `forward`; return `(carries, saved)`."""
    zs = project_inputs(steps.xs, weights.params.w_x, weights.params.b, cell_vjp.compute)
    carries = jax.tree.map(lambda a: jax.ShapeDtypeStruct((zs.shape[0], *a.shape), a.dtype), carry)
    gates = jax.ShapeDtypeStruct(zs.shape if save else (1, *zs.shape[1:]), zs.dtype)
    arguments = (
        zs,
        weights.w_forward,
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
        (carries, gates),
        zs.shape[0],
        zs.shape[1:],
    )
    return carries, saved if save else None


def call_backward(
    cell_vjp: LSTMVJP, weights: Weights, residuals: Residuals, d: LSTMCarry, d_ys: Array
) -> tuple[LSTMCarry, Array, None]:
    """Call `backward`; return `(d_entering, emitted, None)`.

    `LSTMVJP.collect` reads no factors.
    """
    gates = (
        cell_vjp.gates(cell_vjp.prepare(weights.params), residuals.steps.xs, residuals.entering)
        if residuals.saved is None
        else residuals.saved
    )
    out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, gates))
    arguments = (
        weights.w_backward,
        gates,
        residuals.entering.c,
        residuals.leaving.c,
        d,
        d_ys,
        flags_or_empty(residuals.steps.resets),
        flags_or_empty(residuals.steps.mask),
    )
    return *call_loop(
        _backward, is_packed(weights), weights.w_backward, arguments, out, d_ys.shape[0], d.h.shape
    ), None
