"""The numba backend: an unroll function whose loops over time are compiled by numba for the CPU.

    loss_fn = tbptt.sequence_loss(cell, readout, loss, unroll=tbptt.backends.numba_cpu.unroll)

See README.md in this folder.
"""

import importlib
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float

from tbptt.cells.base import CellVJP
from tbptt.cells.elman import ElmanVJP
from tbptt.cells.gru import GRUVJP
from tbptt.cells.lstm import LSTMVJP
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.blocked_vjp import blocked_unroll
from tbptt.unroll.remat import MemoryBudget, Remat
from tbptt.unroll.scan import Backend


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
) -> tuple[Carry, Any]:
    """Run an `Elman` (tanh), `GRU`, `LSTM` or a `Stack` of them on the CPU, in compiled loops.

    Arguments and results are those of `tbptt.unroll`. Values and gradients equal those of
    `tbptt.unroll` to rounding. Numba compiles the loops once and keeps them on disk
    (NUMBA_CACHE_DIR). The program contains custom calls for the CPU, so it cannot be serialised by
    `jax.export` or run on another platform.

    Args:
      cell: an `Elman` with `activation=jnp.tanh`, a `GRU`, an `LSTM`, or a `Stack` of those, in
        float32 or float64 and without `compute_dtype`; derived classes must keep `backprop`;
        static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, H]`.
      xs: `[T, *batch, D]`; T = 0 is allowed and returns the carry.
      resets: `[T, *batch]` booleans; None for no resets.
      mask: `[T, *batch]` booleans; None if every step exists.
      reverse: run from the last step to the first; static. `ys[t]` still belongs to `xs[t]`.
      remat: as in `tbptt.unroll`; static.

    Returns:
      `(carry, ys)`: the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ImportError: numba is not installed, cannot be imported, or NUMBA_DISABLE_JIT is set.
      TypeError: the backend has no loops for the cell, its activation, its compute dtype or its
        dtype; or `xs`, `resets` or `mask` has the wrong dtype.
      ValueError: the rank, sizes or dtypes of an argument do not fit the cell.
    """
    return blocked_unroll(numba_backend, cell, params, carry, xs, resets, mask, reverse, remat)


def numba_backend(cell: Cell, cell_vjp: CellVJP, carry: Carry) -> Backend:
    """Return the compiled loops of a layer.

    Args:
      cell: the layer; static.
      cell_vjp: its backward pass; static.
      carry: the carry that enters it, or its shapes.
    """
    _require_numba()
    h = jax.tree.leaves(carry)[0]
    if not _has_loops(cell_vjp) or h.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            "numba_cpu.unroll has compiled loops for Elman (activation=jnp.tanh), GRU and LSTM, "
            "not for classes derived from them, in float32 and float64 without compute_dtype; got "
            f"{cell} in {h.dtype}. Use tbptt.unroll, which runs any cell"
        )
    from tbptt.backends.numba_cpu import elman, gru, lstm  # these import numba
    from tbptt.backends.numba_cpu.operations import NumbaBackend
    from tbptt.backends.numba_cpu.threads import PACKED_ROWS

    module = {ElmanVJP: elman, GRUVJP: gru, LSTMVJP: lstm}[type(cell_vjp)]
    packed = math.prod(h.shape[:-1]) >= PACKED_ROWS
    return NumbaBackend(
        cell_vjp, module.call_forward, module.call_backward, packed, factors=module is gru
    )


def _has_loops(cell_vjp: CellVJP) -> bool:
    """Return whether the backend has loops for exactly this class.

    A derived class may compute something else.
    """
    if type(cell_vjp) is ElmanVJP:
        return cell_vjp.activation is jnp.tanh and cell_vjp.compute is None
    return (type(cell_vjp) is GRUVJP or type(cell_vjp) is LSTMVJP) and cell_vjp.compute is None


def _require_numba() -> None:
    remedy = "Install one that fits (pip install -U 'tbptt[cpu]'), or use tbptt.unroll"
    if importlib.util.find_spec("numba") is None:
        raise ImportError(f"numba_cpu.unroll needs numba, which is not installed. {remedy}")
    try:
        numba = importlib.import_module("numba")
    except (ImportError, OSError) as error:  # OSError: from the LLVM library that numba brings
        raise ImportError(
            f"numba_cpu.unroll needs numba, which cannot be imported ({error}). {remedy}"
        ) from error
    if numba.config.DISABLE_JIT:
        raise ImportError(
            "numba_cpu.unroll needs numba's compiler; NUMBA_DISABLE_JIT=1 turns it off. Unset it"
        )
