"""The unroll function of the Pallas backend, which pads batch rows and units to whole tiles."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.backends.pallas_gpu.grid import MAX_UNITS, TILE_ROWS, padded, tile_width
from tbptt.backends.pallas_gpu.gru import GRUKernels
from tbptt.backends.pallas_gpu.lstm import LSTMKernels
from tbptt.cells.base import CellVJP
from tbptt.cells.gru import GRU, GRUVJP
from tbptt.cells.lstm import LSTM, LSTMVJP
from tbptt.cells.wrappers import Stack
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.blocked_vjp import blocked_unroll
from tbptt.unroll.remat import MemoryBudget, Remat
from tbptt.unroll.scan import Backend, Residuals, ScanBackend, Steps, differentiated_by
from tbptt.unroll.validate import validated_steps

Layer = GRU | LSTM
# The axis of a parameter's gate blocks, by its field.
GATE_AXIS = {"w_x": 1, "w_h": 1, "b": 0, "b_n": 0}
# Bytes of the input projection of one block of steps. Larger blocks need fewer kernel launches. Not
# measured on a GPU.
BLOCK_BYTES = 256 << 20


def unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Remat | MemoryBudget | None = None,
    interpret: bool = False,
) -> tuple[Carry, Array]:
    """Run an `LSTM`, a `GRU` or a `Stack` of them on a GPU, with one kernel per block of steps.

        for t in range(T):                               # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue          # no such step: the carry is held
            if resets[t]: carry = cell.initial_carry()   # no gradient crosses a reset
            carry, ys[t] = cell(params, carry, xs[t])

    (each `if` elementwise over *batch). A `jax.lax.scan` launches several kernels per step, whose
    latency dominates at small sizes. Here one launch runs a block of steps, with 16 batch rows per
    program, the carry in registers, and the recurrent weights in shared memory (up to 64 KiB) or
    read from the cache at every step. A second kernel runs the backward pass. Batch rows are padded
    to a multiple of 16, units to 16, 32, 64, 128 or 256. The kernels have not been run on a GPU
    yet: tests run them in the interpreter and lower them for CUDA.

    Values and gradients equal those of `tbptt.unroll` to rounding, at JAX's matmul precision of the
    platform: on a GPU float32 products use TF32 in both, unless
    `jax.default_matmul_precision("highest")` is set. Second derivatives run `jax.lax.scan`;
    forward mode is not supported.

    Args:
      cell: `LSTM`, `GRU`, or a `Stack` of those, not classes derived from them; static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, H]`, float32 (float64 only
        with `interpret`).
      xs: `[T, *batch, D]`; T = 0 is allowed and returns the carry.
      resets: `[T, *batch]` booleans; None for no resets.
      mask: `[T, *batch]` booleans; None if every step exists.
      reverse: run from the last step to the first; static. `ys[t]` still belongs to `xs[t]`.
      remat: as in `tbptt.unroll`, for each layer of a stack separately; static.
      interpret: run the kernels in the interpreter of Pallas, slowly, on any platform; static.

    Returns:
      `(carry, ys)`: the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: the rank, sizes or dtypes of an argument do not fit the cell; a layer is wider
        than 256.
      TypeError: the kernels do not support the cell or its dtype, or `xs`, `resets` or `mask` has
        the wrong dtype.

    References: Appleyard et al., *Optimizing performance of recurrent neural networks on GPUs*,
    2016, arXiv:1604.01946; Diamos et al., *Persistent RNNs: stashing recurrent weights on-chip*,
    ICML 2016.
    """
    layers = _layers(cell, interpret)
    steps = validated_steps(cell, params, carry, xs, resets, mask)
    T, batch_shape = steps.xs.shape[0], steps.xs.shape[1:-1]
    N = math.prod(batch_shape)
    steps = jax.tree.map(lambda a: a.reshape(T, N, *a.shape[1 + len(batch_shape) :]), steps)
    steps = _wider(steps, 1, padded(N, TILE_ROWS))
    stacked, carries = isinstance(cell, Stack), []
    for layer, p, c in zip(
        layers, params if stacked else (params,), carry if stacked else (carry,), strict=True
    ):
        c_flat = jax.tree.map(lambda a: a.reshape(N, a.shape[-1]), c)
        last, ys = _run(layer, interpret, p, c_flat, steps, reverse, remat)
        carries.append(jax.tree.map(lambda a, like: a.reshape(like.shape), last, c))
        steps = steps._replace(xs=ys)
    ys = steps.xs[:, :N].reshape(T, *batch_shape, cell.hidden_dim)
    return tuple(carries) if stacked else carries[0], ys


def _run(
    layer: Layer,
    interpret: bool,
    params: Params,
    carry: Carry,
    steps: Steps,
    reverse: bool,
    remat: Any,
) -> tuple[Carry, Array]:
    """Run a layer padded to whole tiles: the additional units have zero weights and stay 0."""
    H, rows = layer.hidden_dim, steps.xs.shape[1]
    wide = padded(H, tile_width(H))
    padded_leaves = {
        name: _wider_gates(leaf, H, wide, GATE_AXIS[name])
        for name, leaf in params._asdict().items()
    }
    params = params._replace(**padded_leaves | {"w_h": _wider(padded_leaves["w_h"], 0, wide)})
    start = jax.tree.map(lambda a: _wider(_wider(a, 0, rows), 1, wide), carry)
    wide_layer = dataclasses.replace(layer, hidden_dim=wide)
    backend_fn = functools.partial(_kernels, interpret)
    last, ys = blocked_unroll(
        backend_fn,
        wide_layer,
        params,
        start,
        *steps,
        reverse=reverse,
        remat=remat,
        block_bytes=BLOCK_BYTES,
    )
    return jax.tree.map(lambda a, like: a[: like.shape[0], :H], last, carry), ys[..., :H]


@dataclasses.dataclass(frozen=True)
class DifferentiableKernels:
    """The loops as kernels, with those of `ScanBackend` as their derivatives: a `Backend`."""

    kernels: LSTMKernels | GRUKernels

    @property
    def cell_vjp(self) -> CellVJP:
        return self.kernels.cell_vjp

    def prepare(self, params: Any) -> Any:
        return self.kernels.prepare(params)

    def forward(
        self, weights: Any, initial: Carry, carry: Carry, steps: Steps, save: bool
    ) -> tuple[Carry, Array, Any]:
        def by(backend: Any, *args: Any) -> Any:
            return backend.forward(*args, save)

        return self._run(by, weights, initial, carry, steps)

    def backward(
        self, weights: Any, residuals: Residuals, d: Carry, d_ys: Any
    ) -> tuple[Carry, Any, Any]:
        def by(backend: Any, *args: Any) -> Any:
            return backend.backward(*args)

        return self._run(by, weights, residuals, d, d_ys)

    def _run(self, by: Callable[..., Any], *args: Any) -> Any:
        scan = functools.partial(by, ScanBackend(self.cell_vjp))
        return differentiated_by(scan, functools.partial(by, self.kernels))(*args)


def _kernels(interpret: bool, layer: Cell, cell_vjp: CellVJP, carry: Carry) -> Backend:
    del layer, carry
    if isinstance(cell_vjp, LSTMVJP):
        return DifferentiableKernels(LSTMKernels(cell_vjp, interpret))
    assert isinstance(cell_vjp, GRUVJP)  # `_check_layer` allows no other cell
    return DifferentiableKernels(GRUKernels(cell_vjp, interpret))


def _wider(tree: Any, axis: int, size: int) -> Any:
    """Pad an axis of every leaf with zeros at its end."""

    def pad(a: Array) -> Array:
        return jnp.pad(
            a, [(0, size - a.shape[axis]) if i == axis else (0, 0) for i in range(a.ndim)]
        )

    return jax.tree.map(pad, tree)


def _wider_gates(leaf: Array, H: int, wide: int, axis: int) -> Array:
    """Pad each gate block of H entries along an axis."""
    blocks = leaf.reshape(*leaf.shape[:axis], -1, H)
    return _wider(blocks, axis + 1, wide).reshape(*leaf.shape[:axis], -1)


def _layers(cell: Cell, interpret: bool) -> tuple[Layer, ...]:
    """Return the layers, the first one first, after `_check_layer`."""
    if type(cell) is not Stack:
        return (_check_layer("cell", cell, interpret),)
    return tuple(
        _check_layer(f"cells[{n}] of the Stack", layer, interpret)
        for n, layer in enumerate(cell.cells)
    )


def _check_layer(name: str, layer: Cell, interpret: bool) -> Layer:
    """Return the layer; raise an error if the kernels do not support it."""
    if type(layer) is not GRU and type(layer) is not LSTM:
        raise TypeError(
            f"{name} must be an LSTM or a GRU, not a class derived from them; got "
            f"{type(layer).__name__}: use unroll, which runs any cell"
        )
    if layer.hidden_dim > MAX_UNITS:
        raise ValueError(
            f"{name} must have hidden_dim at most {MAX_UNITS}, the most that the registers of a "
            f"program hold; got {layer.hidden_dim}: use unroll"
        )
    carry = jax.eval_shape(layer.initial_carry).h.dtype
    compute = jnp.dtype(layer.compute_dtype or carry)
    served = (jnp.float32, jnp.float64) if interpret else (jnp.float32,)
    if carry not in served or compute.itemsize > carry.itemsize:
        raise TypeError(
            f"{name} must have dtype float32 (float64 only with interpret=True), and a "
            f"compute_dtype no wider; got {carry} and {compute}: use dtype=float32 with "
            "compute_dtype=bfloat16 for cheap products, or unroll"
        )
    return layer
