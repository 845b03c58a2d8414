"""The forward and backward kernel of `LSTM`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tbptt.backends.pallas_gpu.grid import (
    call_over_rows,
    column_tiles,
    dot,
    flag_column,
    flags_at,
    select_rows,
    tile_columns,
    tile_width,
    weight_tiles,
    zero_where,
)
from tbptt.cells.lstm import LSTMVJP, LSTMCarry, LSTMFactors, LSTMParams, LSTMWeights
from tbptt.unroll.scan import Residuals, Steps


@dataclasses.dataclass(frozen=True)
class LSTMKernels:
    """The loops of `LSTMVJP` over a block of steps, each as one kernel: a `Backend`.

    A reset sets the carry to 0, the initial carry of `LSTM`.
    """

    cell_vjp: LSTMVJP
    interpret: bool

    def prepare(self, params: LSTMParams) -> LSTMWeights:
        return self.cell_vjp.prepare(params)

    def forward(
        self, weights: LSTMWeights, initial: LSTMCarry, carry: LSTMCarry, steps: Steps, save: bool
    ) -> tuple[LSTMCarry, Array, Array | None]:
        """Run the steps; return `(carries, h, gates)`, with gates `[T, N, 4H]` if `save`."""
        zs = self.cell_vjp.inputs(weights, steps.xs)
        T, h = zs.shape[0], carry.h
        carries = jax.tree.map(lambda a: jax.ShapeDtypeStruct((T, *a.shape), a.dtype), carry)
        out = carries, jax.ShapeDtypeStruct(zs.shape, h.dtype) if save else None
        w = weights.w_h.astype(self.cell_vjp.compute or h.dtype)
        rows = zs, carry, flag_column(steps.resets), flag_column(steps.mask)
        carries, saved = call_over_rows(_forward, rows, w, out, h.shape[-1], self.interpret)
        return carries, carries.h, saved

    def backward(
        self, weights: LSTMWeights, residuals: Residuals, d: LSTMCarry, d_ys: Array
    ) -> tuple[LSTMCarry, Array, LSTMFactors]:
        """Run the steps back; return `(d_entering, emitted, factors)` with `emitted [T, N, 4H]`."""
        common, factors = self.cell_vjp.linearize(
            weights, residuals.steps.xs, residuals.entering, residuals.leaving, residuals.saved
        )
        out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, factors.gates))
        w = common.astype(self.cell_vjp.compute or d.h.dtype)
        rows = (
            factors,
            d,
            d_ys,
            flag_column(residuals.steps.resets),
            flag_column(residuals.steps.mask),
        )
        return *call_over_rows(_backward, rows, w, out, d.h.shape[-1], self.interpret), factors


def _forward(rows: Any, w_ref: Any, out: Any) -> None:
    zs, start, resets, mask = rows
    carries, saved = out
    T, _, H = carries.h.shape
    N = H // tile_width(H)
    w = weight_tiles(w_ref, H)

    def step(t: Any, carry: Any) -> Any:
        reset, exists = flags_at(resets, t), flags_at(mask, t)
        h_in = [zero_where(reset, h) for h in carry[0]]
        leaving = []
        for n in range(N):
            sums = [zs[t, :, tile_columns(gate, n, H)] for gate in range(4)]
            for k in range(N):
                sums = [
                    s + dot(h_in[k], w(k, gate * N + n), s.dtype) for gate, s in enumerate(sums)
                ]
            i, f, g, o = gates = [jnp.tanh(s) for s in sums]
            before_h, before_c = carry[0][n], carry[1][n]
            c = 0.5 * ((f + 1) * zero_where(reset, before_c) + (i + 1) * g)
            h = select_rows(exists, 0.5 * (o + 1) * jnp.tanh(c), before_h)
            c = select_rows(exists, c, before_c)
            carries.h[t, :, tile_columns(0, n, H)] = h
            carries.c[t, :, tile_columns(0, n, H)] = c
            if saved is not None:
                for gate, a in enumerate(gates):
                    saved[t, :, tile_columns(gate, n, H)] = a
            leaving.append((h, c))
        return tuple(zip(*leaving, strict=True))

    jax.lax.fori_loop(0, T, step, (column_tiles(start.h), column_tiles(start.c)))


def _backward(rows: Any, w_ref: Any, out: Any) -> None:
    factors, last, d_ys, resets, mask = rows
    first, emitted = out
    T, _, H = d_ys.shape
    N = H // tile_width(H)
    w = weight_tiles(w_ref, H)

    def step(i: Any, d: Any) -> Any:
        t = T - 1 - i
        reset, exists = flags_at(resets, t), flags_at(mask, t)
        d_h, d_c = [jnp.zeros_like(a) for a in d[0]], []
        for k in range(N):
            here = tile_columns(0, k, H)
            to_h = select_rows(exists, d[0][k] + d_ys[t, :, here], 0)
            to_c = select_rows(exists, d[1][k], 0) + to_h * factors.c_of_h[t, :, here]
            for gate, fed in enumerate((to_c, to_c, to_c, to_h)):
                d_a = fed * factors.gates[t, :, tile_columns(gate, k, H)]
                emitted[t, :, tile_columns(gate, k, H)] = d_a
                d_h = [a + dot(d_a, w(gate * N + k, n), a.dtype) for n, a in enumerate(d_h)]
            d_c.append(to_c * factors.f[t, :, here])
        return jax.tree.map(
            lambda a, b: select_rows(exists, zero_where(reset, a), b), (tuple(d_h), tuple(d_c)), d
        )

    d_h, d_c = jax.lax.fori_loop(0, T, step, (column_tiles(last.h), column_tiles(last.c)))
    for n in range(N):
        first.h[:, tile_columns(0, n, H)] = d_h[n]
        first.c[:, tile_columns(0, n, H)] = d_c[n]
