"""Which loops run: compiled ones for the cells, sizes and devices that they serve, and only where numba is."""

import functools
import importlib.util
import inspect

import jax
import jax.numpy as jnp
import numba
import pytest

from tbptt import cores
from tbptt.cells import LSTM, Elman
from tbptt.engine.loops import ScanLoops
from tbptt.native import choice
from tbptt.native import sizes as native_sizes
from tbptt.native.call import NativeLoops

D, H = 3, 6


def test_which_loops_run(monkeypatch):
    def kind(cell, lanes=1):
        return type(choice.loops_of(cell.backprop, jax.eval_shape(lambda: cell.initial_carry((lanes,)))))

    Other = type("Other", (type(LSTM(1, 1).backprop),), {})  # it may compute anything
    single = functools.partial(LSTM, D, dtype=jnp.float32)

    monkeypatch.setattr(native_sizes, "cores_of_a_device", lambda: 1)
    assert kind(single(native_sizes.NARROW + 1)) is NativeLoops
    monkeypatch.setattr(native_sizes, "cores_of_a_device", lambda: 3)
    assert kind(single(native_sizes.NARROW)) is NativeLoops
    assert kind(single(native_sizes.NARROW + 1), lanes=11) is ScanLoops
    assert kind(single(native_sizes.NARROW + 1), lanes=12) is NativeLoops
    assert kind(LSTM(D, H)) is ScanLoops  # float64
    assert kind(single(H, compute_dtype=jnp.bfloat16)) is ScanLoops
    assert kind(Elman(D, H, activation=jnp.sin, dtype=jnp.float32)) is ScanLoops
    assert kind(Elman(D, H, dtype=jnp.float32)) is NativeLoops
    carry = jax.eval_shape(single(H).initial_carry)
    assert type(choice.loops_of(Other(None), carry)) is ScanLoops
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kind(single(H)) is ScanLoops
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(choice, "_numba_is_here", lambda: False)
    assert kind(single(H)) is ScanLoops


def test_tiles_are_for_several_lanes():
    cell = LSTM(D, H, dtype=jnp.float32)
    tiled = [
        choice.loops_of(cell.backprop, jax.eval_shape(lambda b=b: cell.initial_carry(b))).tiled for b in ((), (1,), (2,))
    ]
    assert tiled == [False, False, True]


def test_cores_of_a_device(monkeypatch):
    for there, devices, of_each in ((8, 2, 4), (2, 2, 1), (3, 2, 1), (1, 4, 1)):
        monkeypatch.setattr(cores, "usable_cores", lambda there=there: there)
        monkeypatch.setattr(jax, "local_device_count", lambda devices=devices: devices)
        assert cores.cores_of_a_device() == of_each


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_numba_is_not_needed(kind, monkeypatch):
    ask = inspect.unwrap(choice._numba_is_here)
    assert ask()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert not ask()
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", 1)
        assert not ask()

    def refuse(name):
        raise kind("Numba needs NumPy 2.9 or less")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.warns(
        UserWarning, match=r"cannot be imported \(Numba needs NumPy 2.9 or less\).*pip install -U 'tbptt\[cpu\]'"
    ):
        assert not ask()
