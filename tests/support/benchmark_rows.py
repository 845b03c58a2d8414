"""What the tests of several benchmarks share: the keys of a row, and caches that are kept."""

import jax
import pytest

KEYS = {"case", "system", "steps_per_second", "ratio", "temp_bytes", "compile_seconds"}


@pytest.fixture(autouse=True)
def keep_what_is_traced(monkeypatch):
    """Keep jax's caches: these tests do not check compile times, and later tests use the caches."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
