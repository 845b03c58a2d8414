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
from tbptt.types import Backprop, Carry

# Lanes times units up to which compiled loops are used. A gradient on two CPU cores with AVX-512, time of the scan over
# theirs at lanes x units = 1 x 16, 4 x 16, 16 x 16, 1 x 64, 4 x 64, 1 x 128, 2 x 128, 1 x 256: LSTM 3.2, 2.9, 1.5, 1.8,
# 1.3, 1.3, 0.9 to 1.1, 1.2; GRU 2.3, 1.6, 1.7, 1.3, 1.2, 1.2, 1.2, 1.1; Elman 1.2, 2.2, 1.8, 1.1, 1.2, 1.0, 0.8, 1.0.
# Beyond, XLA's products over all lanes are better: 0.7 to 1.1 at 8 x 128 and 8 x 256.
MOST = 256
DTYPES = (jnp.float32,)  # float64's tanh is the system's, one number at a time; the loops compute it, for tests


def loops_of(back: Backprop, carry: Carry) -> Loops:
    """Returns the loops for a backward pass and the carry (or its shapes) that enters it."""
    h = jax.tree.leaves(carry)[0]
    small = math.prod(h.shape) <= MOST and h.dtype in DTYPES
    if _has_loops(back) and small and jax.default_backend() == "cpu" and _numba_is_here():
        return native_loops(back)
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
        importlib.import_module("numba")
    except ImportError as error:
        warnings.warn(
            f"numba is installed and cannot be imported ({error}); small layers run by XLA's loop, slower. Install a numba "
            "that fits (pip install -U 'tbptt[cpu]'), or none",
            stacklevel=2,
        )
        return False
    return True


def native_loops(back: Backprop) -> Loops:
    """Returns compiled loops for a backward pass that has them."""
    # Only here: without numba everything else works.
    from tbptt.native import elman, gru, lstm
    from tbptt.native.call import NativeLoops

    module = {ElmanBackprop: elman, GRUBackprop: gru, LSTMBackprop: lstm}[type(back)]
    return NativeLoops(back, module.call_forward, module.call_backward, factors=module is gru)
