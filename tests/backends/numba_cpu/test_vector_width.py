"""Compiled loops use the widest registers of the processor."""

import numpy as np
import pytest

from tbptt.backends.numba_cpu import elman, gru, lstm, xla_ffi
from tests.support.compiled import python_callable

PREFERENCE = '"prefer-vector-width"="512"'


@pytest.mark.parametrize("available", [True, False])
def test_prefers_512_bits_if_available(available, monkeypatch):
    monkeypatch.setattr(xla_ffi, "WIDE", available)

    def double(a):
        xla_ffi.use_wide_vectors()
        for i in range(a.size):
            a[i] *= 2

    loop, a = python_callable(double), np.arange(5.0)
    loop(a)
    (text,) = loop.inspect_llvm().values()
    assert (PREFERENCE in text) == available
    np.testing.assert_array_equal(a, 2 * np.arange(5.0))


@pytest.mark.parametrize("module", [elman, gru, lstm], ids=lambda module: module.__name__)
@pytest.mark.parametrize("loop", ["forward", "backward"])
def test_loops_use_wide_vectors(module, loop):
    assert "use_wide_vectors" in getattr(module, loop).py_func.__code__.co_names
