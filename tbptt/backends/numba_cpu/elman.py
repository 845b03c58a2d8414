"""The compiled forward and backward loops of `Elman` with tanh."""

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
from tbptt.cells.elman import ElmanCarry, ElmanVJP
from tbptt.cells.matmul import project_inputs
from tbptt.unroll.scan import Residuals, Steps


@compiled
def forward(zs, w, h_in, h_start, resets, mask, hs, work, shard):  # type: ignore[no-untyped-def]
    """Run `ElmanVJP.forward` over the steps of a block; fill `hs`.

    zs: `[T, N, H]`, the input projection
    w: `Weights.w_forward`
    h_in, h_start: `[N, H]`, the carry that enters the first step, and the carry after a reset
    resets, mask: `[T, N]`, or empty
    hs: `[T, N, H]`, the carries that leave the steps
    work: a workspace, see `call_loop`
    shard: `(index, count)`, see `shard_rows`
    """
    use_wide_vectors()
    (T, _, H), rows = zs.shape, shard_rows(shard, h_in)
    for t in range(T):
        h, before = hs[t], h_in if t == 0 else hs[t - 1]
        copy_entering(h, before, h_start, resets, t, rows)
        a = multiply(work, h, w, rows)
        for n in range(rows[0], rows[1]):
            z, from_h, out = cols(zs[t], n, 0, H), cols(a, n, 0, H), cols(h, n, 0, H)
            for j in range(out.size):
                out[j] = tanh(z[j] + from_h[j])
        restore_masked(h, before, mask, t, rows)


@compiled
def backward(w, hs, d_h, d_ys, resets, mask, h, emitted, work, shard):  # type: ignore[no-untyped-def]
    """Run `ElmanVJP.linearize` and `backward` from the last step to the first.

    w: `Weights.w_backward`
    hs: `[T, N, H]`, the carries that leave the steps
    d_h: `[N, H]`, the cotangent of the carry that leaves the last step
    d_ys: `[T, N, H]`, the cotangents of the outputs
    h: `[N, H]`, filled with the cotangent of the carry that enters the first step
    emitted: `[T, N, H]`, filled with the cotangents of the pre-activations
    resets, mask, work, shard: as in `forward`
    """
    use_wide_vectors()
    (T, _, H), one, rows = hs.shape, hs.dtype.type(1), shard_rows(shard, d_h)
    copy_rows(h, d_h, rows)
    for t in range(T - 1, -1, -1):
        a = emitted[t]
        for n in range(rows[0], rows[1]):
            exists = mask.size == 0 or mask[t, n]
            d_a, d_h_n = cols(a, n, 0, H), cols(h, n, 0, H)
            y, d_y = cols(hs[t], n, 0, H), cols(d_ys[t], n, 0, H)
            for j in range(d_a.size):
                d_a[j] = (d_h_n[j] + d_y[j]) * (one - y[j] * y[j]) if exists else 0
                d_h_n[j] = 0 if exists else d_h_n[j]
        multiply_back(work, a, w, rows)
        add_rows(h, work, rows)
        zero_reset(h, resets, mask, t, rows)


@inlined
def _run_forward(w, ins, outs, dtype, shard):  # type: ignore[no-untyped-def]
    weights = cube(ins[0], dtype), w
    carries = matrix(ins[2], dtype), matrix(ins[3], dtype)
    out = cube(outs[0], dtype), matrix(outs[1], dtype)
    forward(*weights, *carries, flags(ins[4]), flags(ins[5]), *out, shard)


_forward_sharded, _forward_unsharded = sharded(_run_forward, 1), unsharded(_run_forward, 1)


@inlined
def _run_backward(w, ins, outs, dtype, shard):  # type: ignore[no-untyped-def]
    saved = w, cube(ins[1], dtype)
    d = matrix(ins[2], dtype), cube(ins[3], dtype)
    out = matrix(outs[0], dtype), cube(outs[1], dtype), matrix(outs[2], dtype)
    backward(*saved, *d, flags(ins[4]), flags(ins[5]), *out, shard)


_backward_sharded, _backward_unsharded = sharded(_run_backward, 0), unsharded(_run_backward, 0)


def _forward(dtype, packed, checksum):  # type: ignore[no-untyped-def]
    def elman_forward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _forward_sharded(address, dtype)
            else:
                _forward_unsharded(address, dtype)
        return 0 * checksum

    return elman_forward


def _backward(dtype, packed, checksum):  # type: ignore[no-untyped-def]
    def elman_backward(address):  # type: ignore[no-untyped-def]
        if buffers(address)[0].size > 0:
            if packed:
                _backward_sharded(address, dtype)
            else:
                _backward_unsharded(address, dtype)
        return 0 * checksum

    return elman_backward


def call_forward(
    cell_vjp: ElmanVJP,
    save: bool,
    weights: Weights,
    initial: ElmanCarry,
    carry: ElmanCarry,
    steps: Steps,
) -> tuple[ElmanCarry, tuple[()] | None]:
    """Call `forward`; return `(carries, saved)`, where nothing is saved for tanh."""
    zs = project_inputs(steps.xs, weights.params.w_x, weights.params.b, cell_vjp.compute)
    carries = ElmanCarry(jax.ShapeDtypeStruct(zs.shape, zs.dtype))  # type: ignore[arg-type]
    arguments = (
        zs,
        weights.w_forward,
        carry,
        initial,
        flags_or_empty(steps.resets),
        flags_or_empty(steps.mask),
    )
    carries = call_loop(
        _forward,
        is_packed(weights),
        weights.w_forward,
        arguments,
        carries,
        zs.shape[0],
        zs.shape[1:],
    )
    return carries, () if save else None


def call_backward(
    cell_vjp: ElmanVJP, weights: Weights, residuals: Residuals, d: ElmanCarry, d_ys: Array
) -> tuple[ElmanCarry, Array, None]:
    """Call `backward`; return `(d_entering, emitted, None)`.

    `ElmanVJP.collect` reads no factors.
    """
    del cell_vjp
    out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys))
    arguments = (
        weights.w_backward,
        residuals.leaving,
        d,
        d_ys,
        flags_or_empty(residuals.steps.resets),
        flags_or_empty(residuals.steps.mask),
    )
    return *call_loop(
        _backward, is_packed(weights), weights.w_backward, arguments, out, d_ys.shape[0], d.h.shape
    ), None
