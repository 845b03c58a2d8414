"""Choose the unroll function of a program by the name that its flag --unroll takes."""

import importlib.util
import pkgutil
from typing import Literal

import jax

import tbptt
from experiments.support.common.console import say

UnrollName = Literal["scan", "plain", "parallel", "newton", "numba"]
_FUNCTIONS = {
    "scan": "tbptt:unroll",  # any cell
    "plain": "tbptt:plain_unroll",  # any cell; differentiated by JAX
    "parallel": "tbptt:parallel_unroll",  # cells that are linear in their carry: MinGRU, MinLSTM
    "newton": "tbptt:newton_unroll",  # any cell; for few units and long sequences
    "numba": "tbptt.backends.numba_cpu:unroll",  # Elman, GRU, LSTM and a Stack of them, on a CPU
}


def choose_unroll(name: UnrollName) -> tbptt.UnrollFn:
    """Return the unroll function of a name; a backend is imported only if it is chosen.

    Raises:
      ImportError: `name` is "numba" and numba is not installed.
    """
    if name == "numba" and importlib.util.find_spec("numba") is None:
        raise ImportError(
            "--unroll numba needs the package numba, which is not installed: "
            "pip install 'tbptt[cpu]', or use --unroll scan"
        )
    return pkgutil.resolve_name(_FUNCTIONS[name])


def print_unroll(name: UnrollName) -> None:
    """Print on stderr which unroll function runs; of several processes, the first one prints."""
    if jax.process_index() == 0:
        path = _FUNCTIONS[name].replace(":", ".")
        say(f"Running cells by {path} (--unroll {name}); compiling ...")
