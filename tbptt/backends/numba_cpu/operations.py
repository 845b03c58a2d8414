"""The loops of a cell as two XLA operations on the CPU.

Derivatives of the operations, and batches of weights, use `jax.lax.scan` instead.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from tbptt.backends.numba_cpu.products import PACKED_NDIM, pack
from tbptt.backends.numba_cpu.threads import thread_count
from tbptt.backends.numba_cpu.xla_ffi import registered
from tbptt.cells.base import CellVJP
from tbptt.types import Carry, Params
from tbptt.unroll.scan import Residuals, ScanBackend, Steps, differentiated_by


class Weights(NamedTuple):
    """The parameters of a cell, and its `w_h` for the forward and the backward product.

    Both are plain, or packed for `gemm`.
    """

    params: Params
    w_forward: Float[Array, "H G"] | Float[Array, "J H C"]
    w_backward: Float[Array, "H G"] | Float[Array, "J G C"]


@dataclasses.dataclass(frozen=True)
class NumbaBackend:
    """The loops of a cell as two compiled operations: a `Backend`, equal to `ScanBackend`.

    cell_vjp: the backward pass of the cell.
    call_forward: `(cell_vjp, save, weights, initial, carry, steps) -> (carries, saved)`, by
      `call_loop`.
    call_backward: `(cell_vjp, weights, residuals, d, d_ys) -> (d_entering, emitted, factors)`, by
      `call_loop`.
    packed: whether weights are packed for `gemm` (several batch rows) or plain for `gemv`.
    factors: whether `cell_vjp.collect` reads factors, so that `call_backward` returns them.
    """

    cell_vjp: CellVJP
    call_forward: Callable[..., Any]
    call_backward: Callable[..., Any]
    packed: bool
    factors: bool

    def prepare(self, params: Params) -> Weights:
        w: Any = jnp.asarray(params.w_h)
        return Weights(params, pack(w), pack(w.T)) if self.packed else Weights(params, w, w)

    def forward(
        self, weights: Weights, initial: Carry, carry: Carry, steps: Steps, save: bool
    ) -> tuple[Carry, Array, Any]:
        plain = ScanBackend(self.cell_vjp)

        def scan(weights: Weights, initial: Carry, carry: Carry, steps: Steps) -> Any:
            carries, _, saved = plain.forward(
                plain.prepare(weights.params), initial, carry, steps, save
            )
            return carries, saved

        def more_rows(weights: Weights, initial: Carry, carry: Carry, steps: Steps) -> Any:
            carries, _, saved = self._packed().forward(
                self._repacked(weights), initial, carry, steps, save
            )
            return carries, saved

        call = functools.partial(self.call_forward, self.cell_vjp, save)
        carries, saved = _operation(call, scan, more_rows, (0, 0, 1), (1, 1))(
            weights, initial, carry, steps
        )
        return carries, carries.h, saved

    def backward(
        self, weights: Weights, residuals: Residuals, d: Carry, d_ys: Any
    ) -> tuple[Carry, Any, Any]:
        plain = ScanBackend(self.cell_vjp)

        def scan(weights: Weights, residuals: Residuals, d: Carry, d_ys: Any) -> Any:
            d, emitted, factors = plain.backward(plain.prepare(weights.params), residuals, d, d_ys)
            return d, emitted, factors if self.factors else None

        def more_rows(weights: Weights, residuals: Residuals, d: Carry, d_ys: Any) -> Any:
            return self._packed().backward(self._repacked(weights), residuals, d, d_ys)

        call = functools.partial(self.call_backward, self.cell_vjp)
        return _operation(call, scan, more_rows, (1, 0, 1), (0, 1, 1))(weights, residuals, d, d_ys)

    def _packed(self) -> "NumbaBackend":
        return dataclasses.replace(self, packed=True)

    def _repacked(self, weights: Weights) -> Weights:
        return weights if self.packed else self._packed().prepare(weights.params)


def _operation(
    call: Callable[..., Any],
    scan: Callable[..., Any],
    more_rows: Callable[..., Any],
    axes: tuple[int, ...],
    out_axes: tuple[int, ...],
) -> Callable[..., Any]:
    """Make a function of weights and other arguments that runs `call`, with `scan` as derivative.

    Under `jax.vmap` with shared weights it runs `more_rows`, one operation with more batch rows.
    With a batch of weights it runs `scan`, whose products XLA batches; the operations would run
    one after another.

    Args:
      call: the operation; static.
      scan: the same function by `jax.lax.scan`; static.
      more_rows: the same function for more batch rows; static.
      axes: for each argument after the weights, the position of its first batch axis; static.
      out_axes: for each result, the position of its first batch axis; static.
    """
    single = custom_vmap(call)

    @single.def_vmap
    def _batched(axis_size: int, batched: Any, weights: Weights, *args: Any) -> tuple[Any, Any]:
        if any(jax.tree.leaves(batched[0])):
            in_axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
            out = jax.vmap(scan, in_axes=tuple(in_axes), axis_size=axis_size)(weights, *args)
        else:
            rows = [
                _with_rows(*each, axis_size) for each in zip(args, batched[1:], axes, strict=True)
            ]
            out = tuple(
                jax.tree.map(functools.partial(jnp.moveaxis, source=axis, destination=0), each)
                for each, axis in zip(more_rows(weights, *rows), out_axes, strict=True)
            )
        return out, jax.tree.map(lambda _: True, out)

    return differentiated_by(scan, single)


def _with_rows(tree: Any, batched: Any, axis: int, size: int) -> Any:
    """Move the mapped axis of every leaf to `axis`; repeat an unmapped leaf `size` times."""

    def one(leaf: Array, is_batched: bool) -> Array:
        if is_batched:
            return jnp.moveaxis(leaf, 0, axis)
        return jnp.broadcast_to(
            jnp.expand_dims(leaf, axis), (*leaf.shape[:axis], size, *leaf.shape[axis:])
        )

    return jax.tree.map(one, tree, batched)


def call_loop(
    make: Callable[..., Any],
    packed: bool,
    w: Array,
    arguments: Any,
    out: Any,
    steps: int,
    product: tuple[int, ...],
) -> Any:
    """Call a compiled loop as an XLA operation.

    Args:
      make: the function that `xla_ffi.registered` compiles; static.
      packed: whether the weights are packed; static.
      w: the weights.
      arguments: a pytree of arrays, passed in this order, of one dtype; flags are boolean.
      out: a pytree of shapes.
      steps: the number of steps; static.
      product: the shape of the product of one step; static. A workspace with as many rows is passed
        after `out`.

    Returns:
      The results, a pytree like `out`.
    """
    leaves = jax.tree.leaves(arguments)
    shapes, tree = jax.tree.flatten(out)
    dtypes = {a.dtype for a in (*leaves, *shapes) if a.dtype != bool}
    if len(dtypes) > 1:  # a compiled loop reads all buffers as one dtype
        raise TypeError(
            "params, carry and xs must have one dtype; got "
            f"{', '.join(sorted(map(str, dtypes)))}: convert them"
        )
    rows, columns = math.prod(product[:-1]), w.shape[0] * w.shape[2] if packed else product[-1]
    work = jax.ShapeDtypeStruct((rows, columns), shapes[0].dtype)
    operation = jax.ffi.ffi_call(registered(make, shapes[0].dtype, packed), (*shapes, work))
    shards = thread_count(rows, steps * w.size) if packed else 1
    *made, _ = operation(*leaves, shards=np.int64(shards))
    return jax.tree.unflatten(tree, made)


def is_packed(weights: Weights) -> bool:
    """Return whether the weights are packed for `gemm`."""
    return weights.w_forward.ndim == PACKED_NDIM


def flags_or_empty(flags: Bool[Array, "T *batch"] | None) -> Array:
    """Return the flags, or an empty array for None."""
    return jnp.zeros((0,), bool) if flags is None else flags
