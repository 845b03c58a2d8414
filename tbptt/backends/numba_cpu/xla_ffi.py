"""Registration of Python loops, compiled by numba, as XLA operations on the CPU by `jax.ffi`.

XLA calls an operation with a pointer to an `XLA_FFI_CallFrame` (`xla/ffi/api/c_api.h` in
`jax.ffi.include_dir()`). The compiled code reads words of 64 bits at offsets that the interface
keeps stable:

    frame:     [1] an extension or 0, [2] and [3] see `threads`
               [7] the number of arguments, [9] their buffers
               [12] the number of results, [14] their buffers
               [20] the attributes in the order of their names
    attribute: [1] the value
    buffer:    [3] the data, [4] the rank, [5] the sizes
"""

import functools
import inspect
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numba
import numpy as np
from jax.typing import DTypeLike
from llvmlite import binding
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

# The version of the interface. XLA queries it at registration and refuses unsupported versions.
MAJOR, MINOR = 0, 1
METADATA = 1  # the type of the extension of that query
# LLVM may reorder sums and fuse products with sums; NaN, inf and signed zeros keep their meaning.
FASTMATH = {"reassoc", "contract"}
# Compiled functions call only each other; without entry points for Python and C they compile
# faster.
OPTIONS = {
    "fastmath": FASTMATH,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
WORD = numba.types.intp
# Whether the processor has 32 registers of 512 bits; otherwise 16 of 256 bits are assumed.
WIDE = bool(dict(binding.get_host_cpu_features()).get("avx512f"))


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function where another compiled function calls it.

    It alone is not kept on disk, see `registered`.
    """
    # Unwrapped, because numba cannot compile functions that a type checker has wrapped.
    return numba.njit(inspect.unwrap(function), **OPTIONS)


def inlined(function: Callable[..., Any]) -> Any:
    """Inline a function into its callers, which then may not call it with `*args`.

    LLVM optimises a called function again for every caller, so inlining saves compile time.
    """
    return numba.njit(inspect.unwrap(function), inline="always", **OPTIONS)


def implements(stub: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the function that compiled loops run for `stub`.

    The decorated function receives numba's types and returns an implementation. Unlike
    `numba.extending.overload`, this supports functions that a type checker has wrapped.
    """

    def register(choose: Callable[..., Any]) -> Callable[..., Any]:
        choose = inspect.unwrap(choose)

        @functools.wraps(choose)
        def chosen(*args: Any, **kwargs: Any) -> Any:
            return inspect.unwrap(choose(*args, **kwargs))

        overload(stub, jit_options={"fastmath": FASTMATH})(chosen)
        return choose

    return register


_REGISTER_LOCK = threading.Lock()


def registered(
    make: Callable[[Any, bool, int], Callable[[int], int]], dtype: DTypeLike, packed: bool
) -> str:
    """Register an operation; return its name for `jax.ffi.ffi_call`.

    Numba reuses a compiled function on disk unless the file of the function or a captured value has
    changed; it does not notice changes in other files. Therefore only whole operations are kept on
    disk, and each captures a checksum of all files of this folder.

    Args:
      make: a module-level function `(dtype, packed, checksum) -> operation`, where dtype is numba's
        type of the numbers; static. The operation captures these three values only. Given the
        address of a call frame, it reads `buffers(address)`, does nothing if there are none, and
        returns `0 * checksum`.
      dtype: float32 or float64; static.
      packed: whether the operation reads packed weights; static.
    """
    with _REGISTER_LOCK:  # XLA accepts a name only once, and threads may trace concurrently
        return _registered(make, np.dtype(dtype).name, packed)


@functools.cache
def _registered(
    make: Callable[[Any, bool, int], Callable[[int], int]], name: str, packed: bool
) -> str:
    operation = inspect.unwrap(make(getattr(numba.types, name), packed, source_checksum()))
    variant = f"{name}.{'packed' if packed else 'plain'}"
    target = f"{operation.__module__}.{operation.__name__}.{variant}"
    # Numba names its files by `__qualname__`: a file per variant prevents concurrent writes.
    codegen: Any = cpu_target.target_context.codegen  # type: ignore[reportAttributeAccessIssue]
    processor = zlib.crc32(repr(codegen().magic_tuple()).encode())
    operation.__qualname__ += f".{variant}.{processor:x}"
    made = _compile(operation)
    _COMPILED.append(made)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(made.ctypes), platform="cpu")
    return target


def _compile(operation: Callable[[int], int]) -> Any:
    """Compile an operation, or load it from disk.

    If the disk cannot be used, compile it in memory and warn.
    """
    signature = WORD(WORD)
    try:
        return numba.cfunc(signature, cache=True)(operation)
    except Exception as error:  # no folder, no space, or a truncated file; others recur below
        made = numba.cfunc(signature)(operation)
        warnings.warn(
            "numba could not store compiled loops on disk, or load them from there "
            f"({type(error).__name__}: {error}); every process compiles them again. Set "
            "NUMBA_CACHE_DIR to a new, writable folder on a disk with free space",
            stacklevel=2,
        )
        return made


def source_checksum() -> int:
    """Return a checksum of the files of this folder and of the vector width."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return zlib.crc32(b"".join([*texts, bytes([WIDE])]))


_COMPILED: list[Any] = []  # keeps the code alive, to which XLA has bare pointers


def _array_at(typing_context: Any, address: Any, shape: Any, dtype: Any) -> Any:
    """Make a contiguous array of the memory at an address.

    shape: a tuple; dtype: numba's type of the numbers.
    """
    array = numba.types.Array(dtype.dtype, len(shape), "C")

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = context.make_array(array)(context, builder)
        item = context.get_constant(
            WORD, context.get_abi_sizeof(context.get_data_type(array.dtype))
        )
        sizes, strides = cgutils.unpack_tuple(builder, args[1]), [item]
        for size in reversed(sizes[1:]):
            strides.insert(0, builder.mul(strides[0], size))
        populate_array(
            made, builder.inttoptr(args[0], made.data.type), sizes, strides, item, meminfo=None
        )
        return made._getvalue()

    return array(WORD, numba.types.UniTuple(WORD, len(shape)), dtype), build


_array: Any = intrinsic(_array_at)


@inlined
def words(address, size):  # type: ignore[no-untyped-def]
    """Return `size` words at an address."""
    return _array(address, (size,), np.int64)


@compiled
def buffers(address):  # type: ignore[no-untyped-def]
    """Return the addresses of arguments and results; none if XLA queries the version."""
    frame = words(address, 15)
    if frame[1] != 0 and _answer_version_query(frame[1]):
        return frame[:0], frame[:0]
    return words(frame[9], frame[7]), words(frame[14], frame[12])


@compiled
def _answer_version_query(extension_address):  # type: ignore[no-untyped-def]
    """Answer the version query of XLA; return whether the extension is one."""
    extension = words(extension_address, 4)
    if extension[1] & 0xFFFFFFFF != METADATA:
        return False
    version = words(extension[3], 4)  # [3]: two 32-bit integers, major and minor
    version[3] = MAJOR | MINOR << 32
    return True


@compiled
def attribute(address):  # type: ignore[no-untyped-def]
    """Return the only attribute, an integer."""
    frame = words(address, 21)
    return words(words(words(frame[20], 1)[0], 2)[1], 1)[0]


@compiled
def cube(buffer_address, dtype):  # type: ignore[no-untyped-def]
    """Return a buffer `[T, *batch, X]` as an array `[T, N, X]`."""
    buffer = words(buffer_address, 6)
    rank, sizes = buffer[4], words(buffer[5], buffer[4])
    N = 1
    for axis in range(1, rank - 1):
        N *= sizes[axis]
    return _array(buffer[3], (sizes[0], N, sizes[rank - 1]), dtype)


@compiled
def matrix(buffer_address, dtype):  # type: ignore[no-untyped-def]
    """Return a buffer `[*batch, X]` as an array `[N, X]`."""
    buffer = words(buffer_address, 6)
    rank, sizes = buffer[4], words(buffer[5], buffer[4])
    N = 1
    for axis in range(rank - 1):
        N *= sizes[axis]
    return _array(buffer[3], (N, sizes[rank - 1]), dtype)


@compiled
def flags(buffer_address):  # type: ignore[no-untyped-def]
    """Return a boolean buffer `[T, *batch]` as an array `[T, N]`; T is 0 if there are no flags."""
    buffer = words(buffer_address, 6)
    rank, sizes = buffer[4], words(buffer[5], buffer[4])
    N = 1
    for axis in range(1, rank):
        N *= sizes[axis]
    return _array(buffer[3], (sizes[0], N), np.bool_)


def _use_wide_vectors(typing_context: Any) -> Any:
    """Allow LLVM to use registers of 512 bits in the calling function.

    By default LLVM uses 256 bits, because early AVX-512 processors lowered their clock for more.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if WIDE:
            # `set.add`, because llvmlite's own method refuses attributes with a value.
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return numba.types.void(), build


use_wide_vectors: Any = intrinsic(_use_wide_vectors)
