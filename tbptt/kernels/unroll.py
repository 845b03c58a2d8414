"""`unroll` by fused kernels: the public function, from any batch shape and any sizes to whole tiles and back."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.cells.gru import GRU
from tbptt.cells.lstm import LSTM
from tbptt.cells.stack import Stack
from tbptt.checks import check_sequence
from tbptt.engine.backprop import backprop_scan
from tbptt.engine.loops import Loops
from tbptt.engine.scan import Steps
from tbptt.kernels.grid import LANES, LARGEST, padded, piece
from tbptt.kernels.gru import GRUKernels
from tbptt.kernels.lstm import LSTMKernels
from tbptt.types import Carry, Cell, Params

Layer = GRU | LSTM
GATES = {"w_x": 1, "w_h": 1, "b": 0, "b_n": 0}  # where a parameter's gate blocks stand, by its field


def fused_unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    interpret: bool | None = None,
) -> tuple[Carry, Array]:
    """Runs an `LSTM`, a `GRU` or a `Stack` of them over a sequence with all steps of a block in one GPU kernel.

        for t in range(T):                                   # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue              # the step does not exist: the carry is held
            if resets[t]: carry = cell.initial_carry()       # no gradient crosses it
            carry, ys[t] = cell(params, carry, xs[t])

    (each `if` elementwise over *batch). `unroll` is XLA's loop, which launches some kernels for every step and at small
    sizes waits for the launches. Here one launch takes all lanes through a block of steps, 16 to a program, with h and c
    in registers and the recurrent weights in shared memory (up to 64 KiB) or read from the cache at every step; another
    one takes the cotangents back. Input side and weights' gradient are one product a block outside the kernels, by the
    code that `unroll` runs. Lanes do not mix: no program waits for another one. Lanes and units are padded with zeros
    to whole tiles: to a multiple of 16 lanes, and to 16, 32, 64, 128 or 256 units, the most.

    Values and gradients are those of `unroll` to rounding, bfloat16 products included, with JAX's matmul precision on that
    backend: on a GPU float32 products take TF32's tensor cores in both, unless `jax.default_matmul_precision("highest")`
    asks for more (then without tensor cores here, and slow). Kept for the backward pass, a step: 6 arrays `[*batch, H]`
    for an LSTM and 5 for a GRU, padding included. The gradient itself cannot be differentiated, nor is there forward mode:
    use `unroll` for the one, `plain_unroll` for the other.

    Measured: it equals `unroll` and `plain_unroll` in Pallas's interpreter on a CPU; JAX lowers it for CUDA; and Triton 3.9
    compiled those kernels for compute capability 9.0 within 80 KiB of shared memory, which asks for 8.0 or more. NOT
    measured: it has never run on a GPU, neither its numbers there nor its speed; `python -m benchmarks.gpu` compares it
    with `unroll` and cuDNN. By the counts it should gain at few lanes and weights up to some 256 KiB, as for H = 128 in
    float32: each program reads them all at every step.

    Args:
      cell: static; `LSTM`, `GRU`, or a `Stack` of those, not classes derived from them.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, H]`, float32 (float64 only where interpreted).
      xs: `[T, *batch, D]`; T = 0 is legal and returns the carry.
      resets, mask: `[T, *batch]` booleans; None = no resets, every step exists.
      reverse: static; run from the last step to the first. ys[t] still belongs to xs[t].
      interpret: static; run the kernels by Pallas's interpreter: the same numbers, slowly, on any backend. None = only
        where JAX's default backend is a CPU.

    Returns:
      (carry, ys): the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: rank, sizes or dtypes of xs, carry, resets or mask do not fit the cell; a layer is wider than 256; the
        default backend is neither GPU nor CPU.
      TypeError: another cell; xs, resets or mask are of the wrong dtype; a dtype that the kernels do not serve.

    References: Appleyard et al., *Optimizing performance of recurrent neural networks on GPUs*, 2016, arXiv:1604.01946;
    Diamos et al., *Persistent RNNs: stashing recurrent weights on-chip*, ICML 2016.
    """
    interpret = _interpreted(interpret)
    layers = _layers(cell, interpret)
    xs = jnp.asarray(xs)
    batch_shape = check_sequence(cell, params, carry, xs, resets, mask)
    T, N = xs.shape[0], math.prod(batch_shape)
    resets, mask = (None if flags is None else jnp.reshape(jnp.asarray(flags), (T, N)) for flags in (resets, mask))
    xs = xs.reshape(T, N, xs.shape[-1])
    if mask is not None:
        xs = jnp.where(mask[..., None], xs, 0)  # NaN padding would reach the weights' gradient as 0 * NaN
    steps = _wider(Steps(xs, resets, mask), 1, padded(N, LANES))
    steps = jax.tree.map(lambda a: a[::-1], steps) if reverse else steps
    stacked, left = isinstance(cell, Stack), []
    for layer, p, c in zip(layers, params if stacked else (params,), carry if stacked else (carry,), strict=True):
        last, ys = _run(layer, interpret, p, jax.tree.map(lambda a: a.reshape(N, a.shape[-1]), c), steps)
        left.append(jax.tree.map(lambda a, like: a.reshape(like.shape), last, c))
        steps = steps._replace(xs=ys)
    ys = (steps.xs[::-1] if reverse else steps.xs)[:, :N].reshape(T, *batch_shape, cell.hidden_dim)
    return tuple(left) if stacked else left[0], ys


def _run(layer: Layer, interpret: bool, params: Params, carry: Carry, steps: Steps) -> tuple[Carry, Array]:
    """Runs one layer over whole tiles of lanes, as the wider one whose further units have weights 0 and stay 0."""
    (T, lanes), H, dtype = steps.xs.shape[:2], layer.hidden_dim, carry.h.dtype
    if T == 0:
        return carry, jnp.zeros((T, lanes, H), dtype)
    wide = padded(H, piece(H))
    made = {name: _wider_gates(leaf, H, wide, GATES[name]) for name, leaf in params._asdict().items()}
    params = params._replace(**made | {"w_h": _wider(made["w_h"], 0, wide)})
    start = jax.tree.map(lambda a: _wider(_wider(a, 0, lanes), 1, wide), carry)
    initial = functools.partial(jax.tree.map, jnp.zeros_like, start)
    last, ys = backprop_scan(_kernels(layer, interpret), initial, True, params, start, steps)
    return jax.tree.map(lambda a, like: a[: like.shape[0], :H], last, carry), ys[..., :H]


def _kernels(layer: Layer, interpret: bool) -> Loops:
    return LSTMKernels(layer.backprop, interpret) if isinstance(layer, LSTM) else GRUKernels(layer.backprop, interpret)


def _wider(tree: Any, axis: int, size: int) -> Any:
    """Pads an axis of every leaf with zeros at its end."""

    def pad(a: Array) -> Array:
        return jnp.pad(a, [(0, size - a.shape[axis]) if i == axis else (0, 0) for i in range(a.ndim)])

    return jax.tree.map(pad, tree)


def _wider_gates(leaf: Array, H: int, wide: int, axis: int) -> Array:
    """Pads each of the gate blocks of H along the axis."""
    blocks = leaf.reshape(*leaf.shape[:axis], -1, H)
    return _wider(blocks, axis + 1, wide).reshape(*leaf.shape[:axis], -1)


def _layers(cell: Cell, interpret: bool) -> tuple[Layer, ...]:
    """Returns the layers, the lowest first, if the kernels serve every one."""
    if type(cell) is not Stack:
        return (_served("cell", cell, interpret),)
    return tuple(_served(f"cells[{n}] of the Stack", layer, interpret) for n, layer in enumerate(cell.cells))


def _served(name: str, layer: Cell, interpret: bool) -> Layer:
    """Returns the layer, or says why the kernels do not serve it."""
    if type(layer) is not GRU and type(layer) is not LSTM:
        raise TypeError(
            f"{name} must be an LSTM or a GRU itself, which is what the kernels compute; got {type(layer).__name__}: "
            "use unroll, which takes any cell"
        )
    if layer.hidden_dim > LARGEST:
        raise ValueError(
            f"{name} must have hidden_dim at most {LARGEST}, the most that one program's registers hold; got "
            f"{layer.hidden_dim}: use unroll"
        )
    carry = jax.eval_shape(layer.initial_carry).h.dtype
    compute = jnp.dtype(layer.compute_dtype or carry)
    served = (jnp.float32, jnp.float64) if interpret else (jnp.float32,)
    if carry not in served or compute.itemsize > carry.itemsize:
        raise TypeError(
            f"{name} must have dtype float32 (float64 only where interpreted), and a compute_dtype no wider; got {carry} "
            f"and {compute}: use dtype=float32 with compute_dtype=bfloat16 for cheap products, or unroll"
        )
    return layer


def _interpreted(interpret: bool | None) -> bool:
    backend = jax.default_backend()
    if interpret is None and backend not in ("cpu", "gpu"):
        raise ValueError(
            f"fused_unroll's kernels are written for GPUs; JAX's default backend is {backend}: use unroll, or "
            "interpret=True to run them slowly by Pallas's interpreter"
        )
    return backend == "cpu" if interpret is None else interpret
