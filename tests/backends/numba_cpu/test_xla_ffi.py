"""Storage of operations on disk, and call frames of XLA."""

import inspect
import warnings

import jax
import numba
import numpy as np
import pytest

from tbptt.backends.numba_cpu import xla_ffi
from tbptt.backends.numba_cpu.xla_ffi import buffers, matrix
from tests.support.compiled import python_callable


def _doubling(dtype, packed, checksum):
    def doubles(address):
        ins, outs = buffers(address)
        if ins.size > 0:
            matrix(outs[0], dtype)[:] = 2 * matrix(ins[0], dtype)
        return 0 * checksum

    return doubles


def _double(packed=False):
    """Register the operation as a new process would, and call it."""
    name = inspect.unwrap(xla_ffi._registered)(_doubling, "float32", packed)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(x.shape, x.dtype))(x)
    np.testing.assert_array_equal(out, 2 * x)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Store compiled code in a temporary folder, and register every operation by a new name."""
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


@pytest.mark.exhaustive
def test_operation_is_stored_on_disk_and_loaded(folder):
    _double()
    stored = {path: path.stat().st_mtime_ns for path in _files(folder, "nb?")}
    assert len(stored) == 2  # an index and the code
    with warnings.catch_warnings(action="error"):
        _double()
    assert {path: path.stat().st_mtime_ns for path in _files(folder, "nb?")} == stored


@pytest.mark.exhaustive
@pytest.mark.parametrize("ending", ["nbc", "nbi"])
def test_truncated_file_warns_and_recompiles(folder, ending):
    _double()
    for path in _files(folder, ending):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"EOFError.*compiles them again\. Set NUMBA_CACHE_DIR"):
        _double()


@pytest.mark.exhaustive
def test_every_variant_and_processor_has_its_own_file(folder, monkeypatch):
    _double()
    _double(packed=True)
    assert len(_files(folder, "nbi")) == 2
    codegen = xla_ffi.cpu_target.target_context.codegen()
    monkeypatch.setattr(
        type(codegen), "magic_tuple", lambda self: ("another", "processor", "+avx9")
    )
    _double()
    assert len(_files(folder, "nbi")) == 3


def test_checksum_depends_on_the_vector_width(monkeypatch):
    here = xla_ffi.source_checksum()
    monkeypatch.setattr(xla_ffi, "WIDE", not xla_ffi.WIDE)
    assert xla_ffi.source_checksum() != here


@pytest.mark.parametrize("kind", [xla_ffi.METADATA, xla_ffi.METADATA + 6])
def test_version_query_returns_no_buffers(kind):
    version, extension, frame, pointers = (np.zeros(n, np.int64) for n in (4, 4, 15, 1))
    extension[1], extension[3] = kind, version.ctypes.data
    frame[[1, 7, 9, 12, 14]] = (
        extension.ctypes.data,
        1,
        pointers.ctypes.data,
        1,
        pointers.ctypes.data,
    )
    count = python_callable(lambda address: (buffers(address)[0].size, buffers(address)[1].size))
    sizes = count(frame.ctypes.data)
    is_query = kind == xla_ffi.METADATA
    assert sizes == ((0, 0) if is_query else (1, 1))
    assert version[3] == (xla_ffi.MAJOR | xla_ffi.MINOR << 32 if is_query else 0)
