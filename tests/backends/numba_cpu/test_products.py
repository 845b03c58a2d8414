"""tanh and matrix products of the compiled loops, for any size."""

import functools

import jax
import numpy as np
import pytest

from tbptt.backends.numba_cpu import xla_ffi
from tbptt.backends.numba_cpu.arithmetic import tanh
from tbptt.backends.numba_cpu.products import COLUMNS, gemm, gemv, gemv_transposed, pack
from tests.support.compiled import python_callable

py_gemv, py_gemv_transposed, py_gemm = map(python_callable, (gemv, gemv_transposed, gemm))


@python_callable
def _tanh_of(xs, ys):
    for n in range(xs.size):
        ys[n] = tanh(xs[n])


def test_tanh_in_float32():
    """Check a relative error of at most 4e-7, about 3 units in the last place, for |x| >= 1e-30."""
    xs = np.concatenate([np.geomspace(1e-30, 1, 20_000), np.linspace(0, 12, 200_001)]).astype(
        np.float32
    )
    xs = np.concatenate([xs, -xs])
    ys = np.empty_like(xs)
    _tanh_of(xs, ys)
    want = np.tanh(xs.astype(np.float64))
    assert np.max(np.abs(ys - want) / np.maximum(np.abs(want), 1e-300)) < 4e-7
    assert np.max(np.abs(ys)) <= 1
    special, out = np.asarray([np.inf, -np.inf, np.nan, -0.0], np.float32), np.empty(4, np.float32)
    _tanh_of(special, out)
    assert (
        np.allclose(out[:2], [1, -1], atol=3e-7)
        and np.isnan(out[2])
        and out[3] == 0
        and np.signbit(out[3])
    )


packed = jax.jit(pack)


@pytest.mark.parametrize(
    ("N", "K", "G", "dtype"),
    [
        (1, 4, 8, np.float64),
        (4, 1, 1, np.float64),
        (21, 9, 77, np.float64),
        pytest.param(21, 9, 77, np.float32, marks=pytest.mark.exhaustive),
    ],
)
def test_products(N, K, G, dtype):
    draw = np.random.default_rng(0).normal
    a, h, w = (draw(size=s).astype(dtype) for s in ((N, G), (N, K), (K, G)))
    out, back = np.full_like(a, np.nan), np.full_like(h, np.nan)
    py_gemv(out, h, w)
    py_gemv_transposed(back, a, w)
    close = functools.partial(
        np.testing.assert_allclose, rtol=100 * np.finfo(dtype).eps, atol=100 * np.finfo(dtype).eps
    )
    close(out, h @ w)
    close(back, a @ w.T)
    out, back = (np.full((N, size + -size % COLUMNS), np.nan, dtype) for size in (G, K))
    py_gemm(out, h, np.asarray(packed(w)))
    py_gemm(back, a, np.asarray(packed(w.T)))
    close(out[:, :G], h @ w)
    close(back[:, :K], a @ w.T)
    assert not out[:, G:].any() and not back[:, K:].any()


def test_gemv_uses_the_widest_registers():
    one, many, w = np.ones((1, 64)), np.ones((1, 256)), np.ones((64, 256))
    py_gemv(many, one, w)
    py_gemv_transposed(one, many, w)
    for loop in (py_gemv, py_gemv_transposed):
        machine_code = "".join(loop.inspect_asm().values())
        assert ("zmm" in machine_code) == xla_ffi.WIDE  # registers of 512 bits


@pytest.mark.parametrize("N", range(1, 19))
def test_gemm_with_any_number_of_rows(N):
    draw = np.random.default_rng(0).normal
    h, w, out = draw(size=(N, 3)), draw(size=(3, COLUMNS)), np.full((N, COLUMNS), np.nan)
    py_gemm(out, h, np.asarray(packed(w)))
    np.testing.assert_allclose(out, h @ w, rtol=1e-13, atol=1e-13)
