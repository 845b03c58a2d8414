"""The record of machine, settings and versions that experiments and benchmarks save."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

# CPU flag -> name of the vector instructions, widest first.
VECTORS = {
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "avx": "AVX",
    "sse2": "SSE2",
    "sve": "SVE",
    "asimd": "NEON",
}
PACKAGES = (
    "tbptt", "jax", "jaxlib", "flax", "optax", "numpy", "dm-haiku", "equinox", "keras", "torch",
    "matplotlib", "numba",
)  # fmt: skip
# Environment variables that change times or numbers.
VARIABLES = (
    "XLA_FLAGS", "OMP_NUM_THREADS", "JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS", "JAX_ENABLE_X64",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return the date, the device, the processor, its load, and the versions and settings in use.

    `load` is the load average of 1, 5 and 15 minutes at the time of the call: call it before the
    program starts to compute.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "vectors": _vectors(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "usable_cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _vectors() -> str | None:
    """Return the widest vector instructions: processors of the same name can differ in them."""
    flags = (_cpu_info("flags") or _cpu_info("Features") or "").split()
    return next((name for flag, name in VECTORS.items() if flag in flags), None)


def _cpu_info(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() == field), None)
