"""Which loops run: compiled ones where they are faster, scans everywhere else."""

import functools
import importlib
import importlib.util
import math
import warnings

import jax
import jax.numpy as jnp

from tbptt.cells.elman import ElmanBackprop
from tbptt.cells.gru import GRUBackprop
from tbptt.cells.lstm import LSTMBackprop
from tbptt.engine.loops import Loops, ScanLoops
from tbptt.native.sizes import TILED, loops_fit
from tbptt.types import Backprop, Carry

DTYPES = (jnp.float32,)  # float64's tanh is the system's, one number at a time; the loops compute it, for tests


def loops_of(back: Backprop, carry: Carry) -> Loops:
    """Returns the loops for a backward pass and the carry (or its shapes) that enters it."""
    h = jax.tree.leaves(carry)[0]
    lanes, units = math.prod(h.shape[:-1]), h.shape[-1]
    fits = h.dtype in DTYPES and loops_fit(lanes, units)
    if _has_loops(back) and fits and jax.default_backend() == "cpu" and _numba_is_here():
        return native_loops(back, tiled=lanes >= TILED)
    return ScanLoops(back)


def _has_loops(back: Backprop) -> bool:
    """Says whether loops are compiled for it: for the class itself, as one derived of it may compute something else."""
    if type(back) is ElmanBackprop:
        return back.activation is jnp.tanh and back.compute is None
    return (type(back) is GRUBackprop or type(back) is LSTMBackprop) and back.compute is None


@functools.cache
def _numba_is_here() -> bool:
    """Asks once. Numba that is installed and refuses its surroundings, as it does a newer numpy, is no reason to stop."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        return not importlib.import_module("numba").config.DISABLE_JIT  # NUMBA_DISABLE_JIT=1: it is to compile nothing
    except (ImportError, OSError) as error:  # OSError: of the library of LLVM that it brings
        warnings.warn(
            f"numba is installed and cannot be imported ({error}); small layers run by XLA's loop, slower. Install a numba "
            "that fits (pip install -U 'tbptt[cpu]'), or none",
            stacklevel=2,
        )
        return False


def native_loops(back: Backprop, tiled: bool) -> Loops:
    """Returns compiled loops for a backward pass that has them; tiled: see `NativeLoops`."""
    # Only here: without numba everything else works.
    from tbptt.native import elman, gru, lstm
    from tbptt.native.call import NativeLoops

    module = {ElmanBackprop: elman, GRUBackprop: gru, LSTMBackprop: lstm}[type(back)]
    return NativeLoops(back, module.call_forward, module.call_backward, tiled, factors=module is gru)
