"""Time compiled JAX programs: compilation apart, runs interleaved, each blocked on its own result.

    programs = {name: compile_program(function, *args) for ...}    compiled, not yet run
    timings = time_interleaved(programs, repeats)                  warm up, then time in turns
    timings = measure({name: (function, args)}, repeats)           both
    interleave({name: worker.epoch}, repeats)                      the same for processes

The speed of a machine drifts. Interleaving makes the drift equal for all programs of one call, so
compare seconds within one call only.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Program(NamedTuple):
    """A function compiled for its arguments.

    temp_bytes: the temporary memory that XLA plans, without arguments and results.
    """

    run: Callable[..., Any]
    args: tuple[Any, ...]
    compile_seconds: float
    temp_bytes: int


class Spread(NamedTuple):
    """Statistics of repeated times: median, minimum, quartiles and maximum, in seconds."""

    seconds: float
    least: float
    lower: float
    upper: float
    most: float
    repeats: int


class Timing(NamedTuple):
    """Seconds of one compilation, the `Spread` of the runs, and temp_bytes as XLA plans them."""

    compile_seconds: float
    seconds: float
    least: float
    lower: float
    upper: float
    most: float
    repeats: int
    temp_bytes: int


def time_call(
    function: Callable[..., Any],
    *args: Any,
    block: Callable[[Any], Any] = jax.block_until_ready,
) -> float:
    """Return the seconds of one call, `block(function(*args))`: the wait is for its own result."""
    start = time.perf_counter()
    block(function(*args))
    return time.perf_counter() - start


def compile_program(function: Callable[..., Any], *args: Any, compiles: int = 1) -> Program:
    """Compile `function(*args)` without running it.

    Each compilation starts from empty caches, so that no program profits from what another one
    has traced. Functions that were jitted before must be warmed up again. One lowering comes
    first and is not timed: it pays for imports and for loops that numba compiles once.

    Args:
      function: a function of arrays, jitted or not.
      compiles: number of compilations; `compile_seconds` is their median.
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
    plain = getattr(compiled, "compiled", compiled)  # Equinox and nnx wrap jax's compiled program
    temp_bytes = plain.memory_analysis().temp_size_in_bytes
    return Program(compiled, args, statistics.median(seconds), temp_bytes)


@functools.cache
def _warm_compiler() -> None:
    """Compile one small program: the first compilation of a process loads parts of XLA."""

    def loop(x: Any) -> Any:
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=3)[0].sum()

    jax.jit(jax.grad(loop)).lower(jnp.ones((4, 4))).compile()


def interleave(
    runs: Mapping[str, Callable[[], float]], repeats: int, *, settle: float = 0.0
) -> dict[str, list[float]]:
    """Call every run in turn, `repeats` times, and collect the seconds that each call returns.

        for _ in range(repeats):
            for name in runs: seconds[name].append(runs[name]())

    Args:
      runs: by system; a run may call another process, which measures its own time by `time_call`.
      settle: seconds to sleep before each run, until the threads of the previous system are idle.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if settle:
                time.sleep(settle)
            seconds[name].append(run())
    return seconds


def spread(seconds: Sequence[float]) -> Spread:
    """Return the statistics of repeated times, with quartiles by the inclusive rule."""
    if len(seconds) > 1:
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    else:
        lower = median = upper = seconds[0]
    return Spread(median, min(seconds), lower, upper, max(seconds), len(seconds))


def time_interleaved(programs: Mapping[str, Program], repeats: int) -> dict[str, Timing]:
    """Run each program once to warm it up, then `repeats` times in turns."""
    for program in programs.values():
        jax.block_until_ready(program.run(*program.args))
    runs = {name: lambda p=p: time_call(p.run, *p.args) for name, p in programs.items()}
    seconds = interleave(runs, repeats)
    return {
        name: Timing(p.compile_seconds, *spread(seconds[name]), p.temp_bytes)
        for name, p in programs.items()
    }


def measure(
    systems: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], repeats: int
) -> dict[str, Timing]:
    """Compile and time `f(*args)` for each `name: (f, args)`.

    Args:
      systems: functions of arrays that donate nothing.
      repeats: timed runs of each, after one that warms it up.
    """
    programs = {name: compile_program(f, *args) for name, (f, args) in systems.items()}
    return time_interleaved(programs, repeats)
