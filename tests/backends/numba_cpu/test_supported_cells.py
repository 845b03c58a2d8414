"""Cells that the numba backend supports, and its errors."""

import functools
import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from tbptt.backends import numba_cpu
from tbptt.backends.numba_cpu import numba_backend
from tbptt.cells import GRU, LSTM, Elman, MinGRU, Stack
from tbptt.unroll import CarriesOnly
from tbptt.unroll.autodiff_vjp import cell_vjp_of
from tests.support.sequences import zero_carry

D, H = 3, 6


def backend_of(cell, batch_shape=()):
    return numba_backend(
        cell, cell_vjp_of(cell), jax.eval_shape(lambda: cell.initial_carry(batch_shape))
    )


def test_weights_are_packed_for_several_batch_rows():
    for cell in (Elman(D, H), GRU(D, H), LSTM(D, H, dtype=jnp.float32)):
        assert [backend_of(cell, shape).packed for shape in ((), (1,), (2,), (2, 3))] == [
            False,
            False,
            True,
            True,
        ]


@pytest.mark.parametrize(
    "cell",
    [
        MinGRU(D, H),
        LSTM(D, H, dtype=jnp.float16),
        LSTM(D, H, dtype=jnp.float32, compute_dtype=jnp.bfloat16),
        Elman(D, H, activation=jnp.sin),
    ],
)
def test_unsupported_cells_are_an_error(cell):
    with pytest.raises(
        TypeError, match=r"numba_cpu.unroll has compiled loops for Elman .*got .*Use tbptt.unroll"
    ):
        backend_of(cell)


def test_derived_backward_pass_is_an_error():
    derived = type("Derived", (type(LSTM(1, 1).backprop),), {})  # it may compute something else
    with pytest.raises(TypeError, match="not for classes derived from"):
        numba_backend(LSTM(D, H), derived(None), jax.eval_shape(LSTM(D, H).initial_carry))


def test_unsupported_layer_is_named():
    cell = Stack((LSTM(D, 5), MinGRU(5, H)))
    params = jax.eval_shape(cell.init, jax.random.key(0))
    run = functools.partial(numba_cpu.unroll, cell, remat=CarriesOnly())
    with pytest.raises(TypeError, match="got .*MinGRU"):
        jax.eval_shape(run, params, zero_carry(cell, (2,)), np.ones((4, 2, D)))


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_missing_or_broken_numba_is_an_error(kind, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            ImportError, match=r"needs numba, which is not installed.*pip install -U 'tbptt\[cpu\]'"
        ):
            backend_of(LSTM(D, H))
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", 1)
        with pytest.raises(ImportError, match="NUMBA_DISABLE_JIT=1 turns it off. Unset it"):
            backend_of(LSTM(D, H))

    def refuse(name):
        raise kind("Numba needs NumPy 2.9 or less")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"cannot be imported \(Numba needs NumPy 2.9 or less\)"):
        backend_of(LSTM(D, H))
