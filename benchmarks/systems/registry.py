"""Which systems there are. A new one is a file that offers `forms(case, weights, data)`, and a line here."""

from typing import NamedTuple


class System(NamedTuple):
    """Where a system lives and what it needs.

    path:   "module:function", the function a `work.MakeForms`; imported in the system's own process only
    needs:  packages to import, as Python names them; where one is not installed the system is reported missing
    jax:    whether it is one of the JAX peers
    cores:  whether its process sees the CPU as a device a core, lanes dealt out over them
    """

    path: str
    needs: tuple[str, ...] = ()
    jax: bool = True
    cores: bool = False


OURS, TEXTBOOK, TORCH = "tbptt", "textbook scan", "PyTorch"
ON_CORES = "on all cores"  # added to the name of a system whose lanes are dealt out; PyTorch's threads are on all anyway

# Ours first; every name that starts with `tbptt` is ours.
SYSTEMS: dict[str, System] = {
    OURS: System("benchmarks.systems.ours:forms"),
    f"{OURS} {ON_CORES}": System("benchmarks.systems.ours:forms_on_cores", cores=True),
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
    """Whether a row's system is ours."""
    return system.startswith(OURS)
