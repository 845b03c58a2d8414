"""The forward and backward kernel of `GRU`."""

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
from tbptt.cells.gru import GRUVJP, GRUCarry, GRUFactors, GRUParams, GRUWeights
from tbptt.unroll.scan import Residuals, Steps


@dataclasses.dataclass(frozen=True)
class GRUKernels:
    """The loops of `GRUVJP` over a block of steps, each as one kernel: a `Backend`.

    A reset sets the carry to 0, the initial carry of `GRU`.
    """

    cell_vjp: GRUVJP
    interpret: bool

    def prepare(self, params: GRUParams) -> GRUWeights:
        return self.cell_vjp.prepare(params)

    def forward(
        self, weights: GRUWeights, initial: GRUCarry, carry: GRUCarry, steps: Steps, save: bool
    ) -> tuple[GRUCarry, Array, tuple[Array, ...] | None]:
        """Run the steps; return `(carries, h, saved)`, where `saved` is None unless `save`."""
        zs = self.cell_vjp.inputs(weights, steps.xs)
        (T, N, _), (h,) = zs.shape, carry
        H = h.shape[-1]

        def shape(size: int) -> Any:
            return jax.ShapeDtypeStruct((T, N, size), h.dtype)

        saved = (shape(2 * H), shape(H), shape(H)) if save else None
        shared = (
            weights.w_h.astype(self.cell_vjp.compute or h.dtype),
            weights.b_n.astype(h.dtype)[None],
        )
        rows = zs, carry, flag_column(steps.resets), flag_column(steps.mask)
        carries, saved = call_over_rows(
            _forward, rows, shared, (GRUCarry(shape(H)), saved), H, self.interpret
        )
        return carries, carries.h, saved

    def backward(
        self, weights: GRUWeights, residuals: Residuals, d: GRUCarry, d_ys: Array
    ) -> tuple[GRUCarry, Array, GRUFactors]:
        """Run the steps back; return `(d_entering, emitted, factors)` with `emitted [T, N, H]`."""
        common, factors = self.cell_vjp.linearize(
            weights, residuals.steps.xs, residuals.entering, residuals.leaving, residuals.saved
        )
        out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys))
        w = common.astype(self.cell_vjp.compute or d.h.dtype)
        # The factor of x w_xn is needed after the loop only.
        rows = (
            factors.gates,
            factors.z,
            d,
            d_ys,
            flag_column(residuals.steps.resets),
            flag_column(residuals.steps.mask),
        )
        return *call_over_rows(_backward, rows, w, out, d.h.shape[-1], self.interpret), factors


def _forward(rows: Any, shared: Any, out: Any) -> None:
    (zs, start, resets, mask), (w_ref, b_n), (carries, saved) = rows, shared, out
    T, _, H = carries.h.shape
    N = H // tile_width(H)
    w = weight_tiles(w_ref, H)

    def step(t: Any, before: Any) -> Any:
        reset, exists = flags_at(resets, t), flags_at(mask, t)
        h_in = [zero_where(reset, h) for h in before]
        leaving = []
        for p in range(N):
            here = tile_columns(0, p, H)
            r, z, x_n = (zs[t, :, tile_columns(gate, p, H)] for gate in range(3))
            m = jnp.zeros_like(x_n) + b_n[:, here]
            for k in range(N):
                r, z, m = (
                    a + dot(h_in[k], w(k, gate * N + p), a.dtype)
                    for gate, a in enumerate((r, z, m))
                )
            r, z = jnp.tanh(r), jnp.tanh(z)
            n = jnp.tanh(x_n + 0.5 * (r + 1) * m)
            h = select_rows(exists, n + 0.5 * (z + 1) * (h_in[p] - n), before[p])
            carries.h[t, :, here] = h
            if saved is not None:
                gates, saved_n, saved_m = saved
                gates[t, :, here], gates[t, :, tile_columns(1, p, H)] = r, z
                saved_n[t, :, here], saved_m[t, :, here] = n, m
            leaving.append(h)
        return tuple(leaving)

    jax.lax.fori_loop(0, T, step, column_tiles(start.h))


def _backward(rows: Any, w_ref: Any, out: Any) -> None:
    (gates, zs, last, d_ys, resets, mask), (first, emitted) = rows, out
    T, _, H = d_ys.shape
    N = H // tile_width(H)
    w = weight_tiles(w_ref, H)

    def step(i: Any, d: Any) -> Any:
        t = T - 1 - i
        reset, exists = flags_at(resets, t), flags_at(mask, t)
        to_h = [
            select_rows(exists, a + d_ys[t, :, tile_columns(0, k, H)], 0) for k, a in enumerate(d)
        ]
        d_h = [a * zs[t, :, tile_columns(0, k, H)] for k, a in enumerate(to_h)]
        for k in range(N):
            emitted[t, :, tile_columns(0, k, H)] = to_h[k]
            for gate in range(3):
                d_a = to_h[k] * gates[t, :, tile_columns(gate, k, H)]
                d_h = [a + dot(d_a, w(gate * N + k, n), a.dtype) for n, a in enumerate(d_h)]
        return tuple(
            select_rows(exists, zero_where(reset, a), b) for a, b in zip(d_h, d, strict=True)
        )

    d_h = jax.lax.fori_loop(0, T, step, column_tiles(last.h))
    for n in range(N):
        first.h[:, tile_columns(0, n, H)] = d_h[n]
