"""The clock blocks on what it times, and the GPU benchmark runs its code on a CPU when asked to."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gpu
from benchmarks.clock import measure


def test_the_clock_waits_for_the_value():
    def slow(x):
        return jax.pure_callback(lambda a: (time.sleep(0.05), np.asarray(a))[1], jax.ShapeDtypeStruct((), x.dtype), x)

    timing = measure({"slow": (slow, (jnp.zeros(()),)), "fast": (lambda x: x + 1, (jnp.zeros(()),))}, repeats=3)
    assert timing["slow"].least >= 0.05 > timing["fast"].seconds
    assert timing["slow"].least <= timing["slow"].seconds <= timing["slow"].most
    assert timing["fast"].compile_seconds > 0


def test_the_gpu_cases_run(monkeypatch):
    rows = gpu.measure_case(2, 3, 4, 200, repeats=1)
    assert [row["system"].startswith("tbptt") for row in rows] == [True] * 3
    assert all(row["seconds"] > 0 and row["temp_bytes"] >= 0 for row in rows)
