"""The one clock of all benchmarks: compilation apart, repeats interleaved, blocking on the value that is timed.

    programs = {name: prepare(function, *args) for ...}     compiled, not yet run; seconds and bytes of that
    timings = race(programs, repeats)                       each warmed up, then timed in turns
    timings = measure({name: (function, args)}, repeats)    both
    take_turns({name: worker.run}, repeats)                 the same turns for systems that live in other processes

Seconds are compared within one race only: the machine drifts, and the turns make the drift hit all alike.
"""

import datetime
import functools
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

VECTORS = {
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "avx": "AVX",
    "sse2": "SSE2",
    "sve": "SVE",
    "asimd": "NEON",
}  # widest first
PACKAGES = (
    "tbptt", "jax", "jaxlib", "flax", "optax", "numpy", "dm-haiku", "equinox", "keras", "torch", "matplotlib", "numba"
)  # fmt: skip


class Program(NamedTuple):
    """A function compiled for its arguments. temp_bytes: as XLA plans them, arguments and results not counted."""

    run: Callable[..., Any]
    args: tuple[Any, ...]
    compile_seconds: float
    temp_bytes: int


class Spread(NamedTuple):
    """Seconds over the repeats: the median, the quartiles, the least and the most."""

    seconds: float
    least: float
    lower: float
    upper: float
    most: float
    repeats: int


class Timing(NamedTuple):
    """Seconds: of compiling once, and of running (see `Spread`); temp_bytes as XLA plans them."""

    compile_seconds: float
    seconds: float
    least: float
    lower: float
    upper: float
    most: float
    repeats: int
    temp_bytes: int


def once(function: Callable[..., Any], *args: Any, block: Callable[[Any], Any] = jax.block_until_ready) -> float:
    """Times one call: start; block(function(*args)); stop. The block is on the value itself, never on another one."""
    start = time.perf_counter()
    block(function(*args))
    return time.perf_counter() - start


def prepare(function: Callable[..., Any], *args: Any, compiles: int = 1) -> Program:
    """Compiles `function(*args)` and runs nothing, so that whoever asks can look at the bytes first.

    Every compilation starts from empty caches: else whoever comes later finds the pieces that others have traced. Functions
    jitted before must therefore be warmed up again. Before the clock starts it is lowered once, so that what is loaded, or
    compiled once on a machine and kept there (our loops, by numba), counts for no program.

    Args:
      function: a function of arrays, jitted already or not.
      compiles: how often it is compiled; compile_seconds is the median.
    """
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    _warm_compiler()
    jitted.lower(*args)
    seconds: list[float] = []
    compiled: Any = None
    for _ in range(compiles):
        jax.clear_caches()
        start = time.perf_counter()
        compiled = jitted.lower(*args).compile()
        seconds.append(time.perf_counter() - start)
    plain = getattr(compiled, "compiled", compiled)  # Equinox and nnx wrap what jax compiled
    return Program(compiled, args, statistics.median(seconds), plain.memory_analysis().temp_size_in_bytes)


@functools.cache
def _warm_compiler() -> None:
    """The first compilation in a process also pays for what is loaded once."""

    def loop(x: Any) -> Any:
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=3)[0].sum()

    jax.jit(jax.grad(loop)).lower(jnp.ones((4, 4))).compile()


def take_turns(runs: Mapping[str, Callable[[], float]], repeats: int, *, settle: float = 0.0) -> dict[str, list[float]]:
    """Collects what each run returns (the seconds of one call) over rounds in which the systems take turns.

        for _ in range(repeats):
            for name in runs: seconds[name].append(runs[name]())

    Args:
      runs: by system; a run may ask another process, which then times itself by `once`.
      settle: seconds to wait before each, so that the threads of the system before have gone to sleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if settle:
                time.sleep(settle)
            seconds[name].append(run())
    return seconds


def spread(seconds: Sequence[float]) -> Spread:
    """Sums repeats up; quartiles by the inclusive rule, so that they are never outside what was seen."""
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return Spread(median, min(seconds), lower, upper, max(seconds), len(seconds))


def race(programs: Mapping[str, Program], repeats: int) -> dict[str, Timing]:
    """Runs each program once to warm it up, then `repeats` times in turns."""
    for program in programs.values():
        jax.block_until_ready(program.run(*program.args))
    seconds = take_turns({name: lambda p=p: once(p.run, *p.args) for name, p in programs.items()}, repeats)
    return {
        name: Timing(p.compile_seconds, *spread(seconds[name]), p.temp_bytes) for name, p in programs.items()
    }  # fmt: skip


def measure(systems: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], repeats: int) -> dict[str, Timing]:
    """Compiles and times `f(*args)` for each `name: (f, args)`.

    Args:
      systems: functions of arrays that donate nothing.
      repeats: timed runs of each, after one that warms up.
    """
    return race({name: prepare(function, *args) for name, (function, args) in systems.items()}, repeats)


def environment() -> dict[str, Any]:
    """Describes where and with what it runs: processor, cores, load, versions, date, and settings that change times."""
    variables = ("XLA_FLAGS", "OMP_NUM_THREADS", "JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS", "JAX_ENABLE_X64")
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "vectors": _vectors(),
        "cores": os.cpu_count(),
        "cores_for_us": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "load_before": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "variables": {name: os.environ[name] for name in variables if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _vectors() -> str | None:
    """The widest vector instructions: processors of one name differ in them, and small products by a factor."""
    flags = (_cpu_info("flags") or _cpu_info("Features") or "").split()
    return next((name for flag, name in VECTORS.items() if flag in flags), None)


def _cpu_info(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), None)
