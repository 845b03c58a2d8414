"""What the tests of several benchmarks share: the keys of a row, and caches that stay."""

import jax
import pytest

KEYS = {"case", "system", "steps_per_second", "ratio", "temp_bytes", "compile_seconds"}


@pytest.fixture(autouse=True)
def keep_what_is_traced(monkeypatch):
    """Compile times are not looked at here, and the other tests of this process want their caches."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
