"""The systems that are compared: a file with `forms(case, weights, data)` and a line here."""

from typing import NamedTuple


class System(NamedTuple):
    """Where a system is defined and what it needs.

    path:  "module:function", the function a `work.MakeForms`; imported in its own process only
    needs: packages to import, by their Python names; a system that lacks one is reported as missing
    jax:   whether it is a JAX library
    cores: whether its process sees every CPU core as a device, with the batch sharded over them
    """

    path: str
    needs: tuple[str, ...] = ()
    jax: bool = True
    cores: bool = False


OURS, TEXTBOOK, TORCH = "tbptt", "textbook scan", "PyTorch"
BEFORE = f"{OURS} before"  # `tbptt` of another checkout, `peers --before FOLDER`
NUMBA = f"{OURS} numba"  # the same with unroll=tbptt.backends.numba_cpu.unroll
# Suffix of a system whose batch is sharded over the CPU cores. PyTorch's threads use all anyway.
ON_CORES = "on all cores"

# Every name that starts with `tbptt` is ours.
SYSTEMS: dict[str, System] = {
    OURS: System("benchmarks.systems.ours:forms"),
    NUMBA: System("benchmarks.systems.ours:numba_forms", ("numba",)),
    f"{OURS} {ON_CORES}": System("benchmarks.systems.ours:forms_on_cores", cores=True),
    f"{NUMBA} {ON_CORES}": System(
        "benchmarks.systems.ours:numba_forms_on_cores", ("numba",), cores=True
    ),
    "linen OptimizedLSTMCell": System("benchmarks.systems.peer_linen:optimized"),
    "linen LSTMCell": System("benchmarks.systems.peer_linen:documented"),
    "nnx": System("benchmarks.systems.peer_nnx:forms"),
    "haiku": System("benchmarks.systems.peer_haiku:forms", ("haiku",)),
    "equinox": System("benchmarks.systems.peer_equinox:forms", ("equinox",)),
    "keras": System("benchmarks.systems.peer_keras:forms", ("keras",)),
    TEXTBOOK: System("benchmarks.systems.textbook:forms"),
    f"{TEXTBOOK} {ON_CORES}": System("benchmarks.systems.textbook:forms_on_cores", cores=True),
    TORCH: System("benchmarks.systems.peer_torch:forms", ("torch",), jax=False),
}


def is_ours(system: str) -> bool:
    """Return whether the system of a row is ours."""
    return system.startswith(OURS)
