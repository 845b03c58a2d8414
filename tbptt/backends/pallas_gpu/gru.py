"""The GRU's steps as kernels: forward with h on chip, back with its cotangent."""

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
from tbptt.cells.gru import GRUVJP, GRUCarry, GRUFactors, GRUParams, GRUWeights
from tbptt.unroll.backend import Residuals
from tbptt.unroll.scan import Steps


@dataclasses.dataclass(frozen=True)
class GRUKernels:
    """Both loops of `GRUVJP` over a block of steps, each as one kernel: `Backend`, where start is 0."""

    cell_vjp: GRUVJP
    interpret: bool

    def prepare(self, params: GRUParams) -> GRUWeights:
        return self.cell_vjp.prepare(params)

    def forward(
        self, weights: GRUWeights, start: GRUCarry, carry: GRUCarry, steps: Steps, keep: bool
    ) -> tuple[GRUCarry, Array, tuple[Array, ...] | None]:
        """Runs the steps: the carries that leave them, h once more, and if `keep` what `GRUVJP.forward` saves."""
        zs = self.cell_vjp.inputs(weights, steps.xs)
        (T, N, _), (h,) = zs.shape, carry
        H = h.shape[-1]

        def made(size: int) -> Any:
            return jax.ShapeDtypeStruct((T, N, size), h.dtype)

        saved = (made(2 * H), made(H), made(H)) if keep else None
        shared = weights.w_h.astype(self.cell_vjp.compute or h.dtype), weights.b_n.astype(h.dtype)[None]
        rows = zs, carry, flag_column(steps.resets), flag_column(steps.mask)
        carries, saved = over_batch_rows(_forward, rows, shared, (GRUCarry(made(H)), saved), H, self.interpret)
        return carries, carries.h, saved

    def backward(
        self, weights: GRUWeights, residuals: Residuals, d: GRUCarry, d_ys: Array
    ) -> tuple[GRUCarry, Array, GRUFactors]:
        """Runs the steps back: the cotangent that leaves the first, and every h's, `[T, N, H]`."""
        common, factors = self.cell_vjp.linearize(
            weights, residuals.steps.xs, residuals.entering, residuals.leaving, residuals.saved
        )
        out = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (d, d_ys))
        w = common.astype(self.cell_vjp.compute or d.h.dtype)
        # What feeds x w_xn is needed after the loop only.
        rows = factors.gates, factors.z, d, d_ys, flag_column(residuals.steps.resets), flag_column(residuals.steps.mask)
        return *over_batch_rows(_backward, rows, w, out, d.h.shape[-1], self.interpret), factors


def _forward(rows: Any, shared: Any, out: Any) -> None:
    (zs, start, resets, mask), (w_ref, b_n), (carries, saved) = rows, shared, out
    T, _, H = carries.h.shape
    N = H // tile_width(H)
    w = tiles(w_ref, H)

    def step(t: Any, before: Any) -> Any:
        reset, exists = at(resets, t), at(mask, t)
        h_in = [cleared(reset, h) for h in before]
        leaving = []
        for p in range(N):
            here = columns(0, p, H)
            r, z, x_n = (zs[t, :, columns(gate, p, H)] for gate in range(3))
            m = jnp.zeros_like(x_n) + b_n[:, here]
            for k in range(N):
                r, z, m = (a + dot(h_in[k], w(k, gate * N + p), a.dtype) for gate, a in enumerate((r, z, m)))
            r, z = jnp.tanh(r), jnp.tanh(z)
            n = jnp.tanh(x_n + 0.5 * (r + 1) * m)
            h = chosen(exists, n + 0.5 * (z + 1) * (h_in[p] - n), before[p])
            carries.h[t, :, here] = h
            if saved is not None:
                gates, saved_n, saved_m = saved
                gates[t, :, here], gates[t, :, columns(1, p, H)] = r, z
                saved_n[t, :, here], saved_m[t, :, here] = n, m
            leaving.append(h)
        return tuple(leaving)

    jax.lax.fori_loop(0, T, step, column_tiles(start.h))


def _backward(rows: Any, w_ref: Any, out: Any) -> None:
    (gates, zs, last, d_ys, resets, mask), (first, emitted) = rows, out
    T, _, H = d_ys.shape
    N = H // tile_width(H)
    w = tiles(w_ref, H)

    def step(i: Any, d: Any) -> Any:
        t = T - 1 - i
        reset, exists = at(resets, t), at(mask, t)
        to_h = [chosen(exists, a + d_ys[t, :, columns(0, k, H)], 0) for k, a in enumerate(d)]
        d_h = [a * zs[t, :, columns(0, k, H)] for k, a in enumerate(to_h)]
        for k in range(N):
            emitted[t, :, columns(0, k, H)] = to_h[k]
            for gate in range(3):
                d_a = to_h[k] * gates[t, :, columns(gate, k, H)]
                d_h = [a + dot(d_a, w(gate * N + k, n), a.dtype) for n, a in enumerate(d_h)]
        return tuple(chosen(exists, cleared(reset, a), b) for a, b in zip(d_h, d, strict=True))

    d_h = jax.lax.fori_loop(0, T, step, column_tiles(last.h))
    for n in range(N):
        first.h[:, columns(0, n, H)] = d_h[n]
