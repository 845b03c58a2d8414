"""The LSTM's steps as kernels: forward with h and c on chip, back with their cotangents."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tbptt.backends.pallas_gpu.grid import (
    at,
    chosen,
    cleared,
    column_tiles,
    columns,
    dot,
    flag_column,
    over_batch_rows,
    tile_width,
    tiles,
)
from tbptt.cells.lstm import LSTMVJP, LSTMCarry, LSTMFactors, LSTMParams, LSTMWeights
from tbptt.unroll.backend import Residuals
from tbptt.unroll.scan import Steps


@dataclasses.dataclass(frozen=True)
class LSTMKernels:
    """Both loops of `LSTMVJP` over a block of steps, each as one kernel: `Backend`, where start is 0."""

    cell_vjp: LSTMVJP
    interpret: bool

    def prepare(self, params: LSTMParams) -> LSTMWeights:
        return self.cell_vjp.prepare(params)

    def forward(
        self, weights: LSTMWeights, start: LSTMCarry, carry: LSTMCarry, steps: Steps, keep: bool
    ) -> tuple[LSTMCarry, Array, Array | None]:
        """Runs the steps: the carries that leave them, h `[T, N, H]` once more, and if `keep` the gates `[T, N, 4H]`."""
        zs = self.cell_vjp.inputs(weights, steps.xs)
        T, h = zs.shape[0], carry.h
        carries = jax.tree.map(lambda a: jax.ShapeDtypeStruct((T, *a.shape), a.dtype), carry)
        out = carries, jax.ShapeDtypeStruct(zs.shape, h.dtype) if keep else None
        w = weights.w_h.astype(self.cell_vjp.compute or h.dtype)
        rows = zs, carry, flag_column(steps.resets), flag_column(steps.mask)
        carries, saved = over_batch_rows(_forward, rows, w, out, h.shape[-1], self.interpret)
        return carries, carries.h, saved

    def backward(
        self, weights: LSTMWeights, residuals: Residuals, d: LSTMCarry, d_ys: Array
    ) -> tuple[LSTMCarry, Array, LSTMFactors]:
        """Runs the steps back: the cotangent that leaves the first, and the gates' `[T, N, 4H]`."""
        common, factors = self.cell_vjp.linearize(
            weights, residuals.steps.xs, residuals.entering, residuals.leaving, residuals.saved
        )
        out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, factors.gates))
        w = common.astype(self.cell_vjp.compute or d.h.dtype)
        rows = factors, d, d_ys, flag_column(residuals.steps.resets), flag_column(residuals.steps.mask)
        return *over_batch_rows(_backward, rows, w, out, d.h.shape[-1], self.interpret), factors


def _forward(rows: Any, w_ref: Any, out: Any) -> None:
    zs, start, resets, mask = rows
    carries, saved = out
    T, _, H = carries.h.shape
    N = H // tile_width(H)
    w = tiles(w_ref, H)

    def step(t: Any, carry: Any) -> Any:
        reset, exists = at(resets, t), at(mask, t)
        h_in = [cleared(reset, h) for h in carry[0]]
        leaving = []
        for n in range(N):
            sums = [zs[t, :, columns(gate, n, H)] for gate in range(4)]
            for k in range(N):
                sums = [s + dot(h_in[k], w(k, gate * N + n), s.dtype) for gate, s in enumerate(sums)]
            i, f, g, o = gates = [jnp.tanh(s) for s in sums]
            before_h, before_c = carry[0][n], carry[1][n]
            c = 0.5 * ((f + 1) * cleared(reset, before_c) + (i + 1) * g)
            h = chosen(exists, 0.5 * (o + 1) * jnp.tanh(c), before_h)
            c = chosen(exists, c, before_c)
            carries.h[t, :, columns(0, n, H)] = h
            carries.c[t, :, columns(0, n, H)] = c
            if saved is not None:
                for gate, a in enumerate(gates):
                    saved[t, :, columns(gate, n, H)] = a
            leaving.append((h, c))
        return tuple(zip(*leaving, strict=True))

    jax.lax.fori_loop(0, T, step, (column_tiles(start.h), column_tiles(start.c)))


def _backward(rows: Any, w_ref: Any, out: Any) -> None:
    factors, last, d_ys, resets, mask = rows
    first, emitted = out
    T, _, H = d_ys.shape
    N = H // tile_width(H)
    w = tiles(w_ref, H)

    def step(i: Any, d: Any) -> Any:
        t = T - 1 - i
        reset, exists = at(resets, t), at(mask, t)
        d_h, d_c = [jnp.zeros_like(a) for a in d[0]], []
        for k in range(N):
            here = columns(0, k, H)
            to_h = chosen(exists, d[0][k] + d_ys[t, :, here], 0)
            to_c = chosen(exists, d[1][k], 0) + to_h * factors.c_of_h[t, :, here]
            for gate, fed in enumerate((to_c, to_c, to_c, to_h)):
                d_a = fed * factors.gates[t, :, columns(gate, k, H)]
                emitted[t, :, columns(gate, k, H)] = d_a
                d_h = [a + dot(d_a, w(gate * N + k, n), a.dtype) for n, a in enumerate(d_h)]
            d_c.append(to_c * factors.f[t, :, here])
        return jax.tree.map(lambda a, b: chosen(exists, cleared(reset, a), b), (tuple(d_h), tuple(d_c)), d)

    d_h, d_c = jax.lax.fori_loop(0, T, step, (column_tiles(last.h), column_tiles(last.c)))
    for n in range(N):
        first.h[:, columns(0, n, H)] = d_h[n]
        first.c[:, columns(0, n, H)] = d_c[n]
