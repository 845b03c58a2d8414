"""The one clock of all benchmarks: compilation apart, repeats interleaved, blocking on the value that is timed."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Seconds: of compiling once, and of running (median, least, most over the repeats); temp_bytes as XLA plans them."""

    compile_seconds: float
    seconds: float
    least: float
    most: float
    temp_bytes: int


def measure(systems: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], repeats: int) -> dict[str, Timing]:
    """Times `f(*args)` for each `name: (f, args)`; the systems take turns, so that a drifting machine hits all alike.

        for _ in range(repeats):
            for name in systems: start; block_until_ready(f(*args)); stop

    Args:
      systems: functions of arrays, not yet jitted, that donate nothing.
      repeats: timed runs of each, after one that warms up.
    """
    compiled, compile_seconds = {}, {}
    for name, (function, args) in systems.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(function).lower(*args).compile()
        compile_seconds[name] = time.perf_counter() - start
        jax.block_until_ready(compiled[name](*args))
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(repeats):
        for name, (_, args) in systems.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](*args))
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(
            compile_seconds[name],
            statistics.median(s),
            min(s),
            max(s),
            compiled[name].memory_analysis().temp_size_in_bytes,
        )
        for name, s in seconds.items()
    }
