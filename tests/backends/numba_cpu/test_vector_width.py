"""Compiled loops fill the widest registers of the processor, which LLVM by itself does not everywhere."""

import numpy as np
import pytest

from tbptt.backends.numba_cpu import elman, gru, lstm
from tbptt.backends.numba_cpu import vector_width as width
from tbptt.backends.numba_cpu.gemv import gemv, gemv_transposed
from tests.support.compiled import callable_here

ASKED = '"prefer-vector-width"="512"'


@pytest.mark.parametrize("has_them", [True, False])
def test_asks_for_512_bits_where_registers_have_them(has_them, monkeypatch):
    monkeypatch.setattr(width, "WIDE", has_them)

    def double(a):
        width.wide()
        for i in range(a.size):
            a[i] *= 2

    loop, a = callable_here(double), np.arange(5.0)
    loop(a)
    (text,) = loop.inspect_llvm().values()
    assert (ASKED in text) == has_them
    np.testing.assert_array_equal(a, 2 * np.arange(5.0))


@pytest.mark.parametrize(
    "product",
    [
        pytest.param(gemv, id="ahead"),
        pytest.param(gemv_transposed, id="back", marks=pytest.mark.exhaustive),
    ],
)
def test_products_by_rows_do(product):
    one, many, w = np.ones((1, 64), np.float32), np.ones((1, 256), np.float32), np.ones((64, 256), np.float32)
    loop = callable_here(product)
    loop(*((many, one, w) if product is gemv else (one, many, w)))
    machine_code = "".join(loop.inspect_asm().values())
    if width.WIDE:
        assert "zmm" in machine_code  # registers of 512 bits
    else:
        assert "zmm" not in machine_code


@pytest.mark.parametrize("module", [elman, gru, lstm], ids=lambda module: module.__name__)
@pytest.mark.parametrize("loop", ["forward", "backward"])
def test_loops_over_time_ask_too(module, loop):
    assert "wide" in getattr(module, loop).py_func.__code__.co_names
