"""What compiled loops compute with, alone: tanh, and the products by rows and by tiles, of any size."""

import functools

import jax
import numpy as np
import pytest

from tbptt.backends.numba_cpu.arithmetic import tanh
from tbptt.backends.numba_cpu.gemm import COLUMNS, gemm, pack
from tbptt.backends.numba_cpu.gemv import gemv, gemv_transposed
from tests.support.compiled import callable_here

by_rows, back_by_rows, by_tiles = map(callable_here, (gemv, gemv_transposed, gemm))


@callable_here
def _tanh_of(xs, ys):
    for n in range(xs.size):
        ys[n] = tanh(xs[n])


def test_tanh_in_float32():
    """Its relative error is at most 4e-7, some three units in the last place, from 1e-30 to where it is 1."""
    xs = np.concatenate([np.geomspace(1e-30, 1, 20_000), np.linspace(0, 12, 200_001)]).astype(np.float32)
    xs = np.concatenate([xs, -xs])
    ys = np.empty_like(xs)
    _tanh_of(xs, ys)
    want = np.tanh(xs.astype(np.float64))
    assert np.max(np.abs(ys - want) / np.maximum(np.abs(want), 1e-300)) < 4e-7
    assert np.max(np.abs(ys)) <= 1
    special, out = np.asarray([np.inf, -np.inf, np.nan, -0.0], np.float32), np.empty(4, np.float32)
    _tanh_of(special, out)
    assert np.allclose(out[:2], [1, -1], atol=3e-7) and np.isnan(out[2]) and out[3] == 0 and np.signbit(out[3])


packed = jax.jit(pack)


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(("lanes", "rows", "columns"), [(1, 4, 8), (2, 5, 3), (3, 7, 16), (4, 1, 1), (21, 9, 77)])
def test_products(lanes, rows, columns, dtype):
    draw = np.random.default_rng(0).normal
    a, h, w = (draw(size=s).astype(dtype) for s in ((lanes, columns), (lanes, rows), (rows, columns)))
    there, back = np.full_like(a, np.nan), np.full_like(h, np.nan)
    by_rows(there, h, w)
    back_by_rows(back, a, w)
    close = functools.partial(np.testing.assert_allclose, rtol=100 * np.finfo(dtype).eps, atol=100 * np.finfo(dtype).eps)
    close(there, h @ w)
    close(back, a @ w.T)
    there, back = (np.full((lanes, size + -size % COLUMNS), np.nan, dtype) for size in (columns, rows))
    by_tiles(there, h, np.asarray(packed(w)))
    by_tiles(back, a, np.asarray(packed(w.T)))
    close(there[:, :columns], h @ w)
    close(back[:, :rows], a @ w.T)
    assert not there[:, columns:].any() and not back[:, rows:].any()


@pytest.mark.parametrize("lanes", range(1, 19))
def test_tiles_of_any_number_of_lanes(lanes):
    draw = np.random.default_rng(0).normal
    h, w, out = draw(size=(lanes, 3)), draw(size=(3, COLUMNS)), np.full((lanes, COLUMNS), np.nan)
    by_tiles(out, h, np.asarray(packed(w)))
    np.testing.assert_allclose(out, h @ w, rtol=1e-13, atol=1e-13)
