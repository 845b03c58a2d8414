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
from tbptt.cores import cores_of_a_device
from tbptt.engine.loops import Loops, ScanLoops
from tbptt.types import Backprop, Carry

# Compiled loops run on one core. So they run at every size where a device has but one (`split_cpu`): a gradient on one
# core with AVX-512, time of the scan over theirs at lanes x units from 2 x 64 to 256 x 256: LSTM 1.01 to 1.31, GRU 1.02
# to 1.21, Elman 1.05 to 1.32; of one lane at 512 and 1,024 units: LSTM 2.7, 1.9 (2026-11-26). Where a device has several,
# larger products of XLA's use them all, and loops run up to this many lanes times units. On two cores, at 4 x 16, 16 x
# 16, 2 x 64, 4 x 64, 2 x 128: GRU 1.6, 1.5, 1.2, 1.2, 1.1; Elman 1.5, 1.4, 1.3, 1.4, 1.1; LSTM from 2 x 64 on 1.1, 1.1,
# 1.2, of 1 lane at 64 and 128 units 1.2, 1.3, but from 8 x 128 to 64 x 512 1.0 to 0.8. One lane at 192, 256, 384, 512
# units: LSTM 1.1, 1.3, 0.8, 0.7; GRU 1.1, 1.1, 1.1, 0.8. All before backward loops of several lanes filled vectors.
MOST = 256
TILED = 2  # lanes from which products are those of tiles; for one, laying out the weights costs more than tiles save
DTYPES = (jnp.float32,)  # float64's tanh is the system's, one number at a time; the loops compute it, for tests


def loops_of(back: Backprop, carry: Carry) -> Loops:
    """Returns the loops for a backward pass and the carry (or its shapes) that enters it."""
    h = jax.tree.leaves(carry)[0]
    fits = h.dtype in DTYPES and (math.prod(h.shape) <= MOST or cores_of_a_device() == 1)
    if _has_loops(back) and fits and jax.default_backend() == "cpu" and _numba_is_here():
        return native_loops(back, tiled=math.prod(h.shape[:-1]) >= TILED)
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


def native_loops(back: Backprop, tiled: bool) -> Loops:
    """Returns compiled loops for a backward pass that has them; tiled: see `NativeLoops`."""
    # Only here: without numba everything else works.
    from tbptt.native import elman, gru, lstm
    from tbptt.native.call import NativeLoops

    module = {ElmanBackprop: elman, GRUBackprop: gru, LSTMBackprop: lstm}[type(back)]
    return NativeLoops(back, module.call_forward, module.call_backward, tiled, factors=module is gru)
