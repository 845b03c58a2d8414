"""Operations that are kept on disk, and the frames by which XLA calls them."""

import inspect
import warnings

import jax
import numba
import numpy as np
import pytest

from tbptt.backends.numba_cpu import xla_ffi as frame
from tbptt.backends.numba_cpu.xla_ffi import buffers, matrix
from tests.support.compiled import callable_here


def _doubling(kind, tiled, sources):
    def doubles(address):
        ins, outs = buffers(address)
        if ins.size > 0:
            matrix(outs[0], kind)[:] = 2 * matrix(ins[0], kind)
        return 0 * sources

    return doubles


def _double(tiled=False):
    """Registers the operation as a new process would, and calls it."""
    name = inspect.unwrap(frame._registered)(_doubling, "float32", tiled)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(x.shape, x.dtype))(x)
    np.testing.assert_array_equal(out, 2 * x)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Keeps what is compiled in a folder; XLA takes a name only once, so that every one registered here is another one."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    register, taken = jax.ffi.register_ffi_target, []

    def other(name, *args, **kwargs):
        taken.append(f"{name}.{len(taken)}.{tmp_path.name}")
        register(taken[-1], *args, **kwargs)

    monkeypatch.setattr(jax.ffi, "register_ffi_target", other)
    call = jax.ffi.ffi_call
    monkeypatch.setattr(jax.ffi, "ffi_call", lambda name, *args: call(taken[-1], *args))
    return tmp_path


def _files(folder, ending):
    return sorted(folder.rglob(f"*.{ending}"))


def test_an_operation_is_kept_and_found(folder):
    _double()
    kept = {path: path.stat().st_mtime_ns for path in _files(folder, "nb?")}
    assert len(kept) == 2  # an index, and what it points to
    with warnings.catch_warnings(action="error"):
        _double()
    assert {path: path.stat().st_mtime_ns for path in _files(folder, "nb?")} == kept


@pytest.mark.parametrize("ending", ["nbc", pytest.param("nbi", marks=pytest.mark.exhaustive)])
def test_a_file_cut_short_is_told_and_stops_nobody(folder, ending):
    _double()
    for path in _files(folder, ending):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"EOFError.*compiles them anew\. Set NUMBA_CACHE_DIR"):
        _double()


@pytest.mark.exhaustive
def test_every_variant_and_processor_has_an_index_of_its_own(folder, monkeypatch):
    _double()
    _double(tiled=True)
    assert len(_files(folder, "nbi")) == 2
    codegen = frame.cpu_target.target_context.codegen()
    monkeypatch.setattr(type(codegen), "magic_tuple", lambda self: ("another", "processor", "+avx9"))
    _double()
    assert len(_files(folder, "nbi")) == 3


def test_what_is_kept_is_for_the_registers_it_was_compiled_for(monkeypatch):
    here = frame.sources()
    monkeypatch.setattr(frame, "WIDE", not frame.WIDE)
    assert frame.sources() != here


@pytest.mark.parametrize("kind", [frame.METADATA, frame.METADATA + 6])
def test_only_who_asks_for_the_version_gets_no_buffers(kind):
    version, extension, called, pointers = (np.zeros(n, np.int64) for n in (4, 4, 15, 1))
    extension[1], extension[3] = kind, version.ctypes.data
    called[[1, 7, 9, 12, 14]] = extension.ctypes.data, 1, pointers.ctypes.data, 1, pointers.ctypes.data
    count = callable_here(lambda address: (buffers(address)[0].size, buffers(address)[1].size))
    sizes = count(called.ctypes.data)
    asked = kind == frame.METADATA
    assert sizes == ((0, 0) if asked else (1, 1))
    assert version[3] == (frame.MAJOR | frame.MINOR << 32 if asked else 0)
