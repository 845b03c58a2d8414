"""A loop in Python, compiled by numba, as an operation of XLA's on the CPU: numba's side of `jax.ffi`.

XLA calls an operation with one pointer, to a `XLA_FFI_CallFrame` (`xla/ffi/api/c_api.h` in `jax.ffi.include_dir()`). What
is read of it are words of 64 bits at places which that interface keeps stable:

    frame:  [1] an extension, or 0    [7] how many arguments, [9] their buffers    [12] how many results, [14] their buffers
            [20] attributes, in the order of their names; each: [1] its value    [2], [3]: see `batch_threads`
    buffer: [3] the data, [4] the rank, [5] the sizes
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
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

from tbptt.backends.numba_cpu.vector_width import WIDE

# XLA asks every operation for the version it was written for, and refuses versions it no longer serves.
MAJOR, MINOR = 0, 1
METADATA = 1  # the type of the extension by which it asks
# Sums may be reordered to fill vectors, products and sums fused; NaN, inf and the sign of zero stay what they are.
RELAXED = {"reassoc", "contract"}
# Functions call each other; ways in from Python and from C made compiling an operation take 1.3 to 1.5 times as long.
OPTIONS = {"fastmath": RELAXED, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
WORD = numba.types.intp


def compiled(function: Callable[..., Any]) -> Any:
    """Lets numba compile a function where it is used. Not kept on disk by itself: `registered` says why."""
    # Unwrapped: a checker of types (jaxtyping's hook in tests) wraps functions into what numba cannot read.
    return numba.njit(inspect.unwrap(function), **OPTIONS)


def inlined(function: Callable[..., Any]) -> Any:
    """Writes a function into its callers: LLVM optimizes all that a function calls once more for every function around it,
    so that fewer of them compile faster. A function that is written into others may not be called with `*args`."""
    return numba.njit(inspect.unwrap(function), inline="always", **OPTIONS)


def implements(stub: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what compiled loops run where they call `stub`: the decorated function gets numba's types, and returns it.

    As `numba.extending.overload`, which cannot read functions that a checker of types has wrapped.
    """

    def register(choose: Callable[..., Any]) -> Callable[..., Any]:
        choose = inspect.unwrap(choose)

        @functools.wraps(choose)
        def chosen(*args: Any, **kwargs: Any) -> Any:
            return inspect.unwrap(choose(*args, **kwargs))

        overload(stub, jit_options={"fastmath": RELAXED})(chosen)
        return choose

    return register


_ONE_AT_A_TIME = threading.Lock()


def registered(make: Callable[[Any, bool, int], Callable[[int], int]], dtype: DTypeLike, packed: bool) -> str:
    """Registers an operation, compiled now or by an earlier process; returns the name by which `jax.ffi.ffi_call` finds it.

    Numba takes what it has on disk unless the function's own file changed, or what the function wraps; it does not see that
    another one changed, which the function calls. So the operation is kept whole, and wraps a number of all our sources.

    Args (static):
      make: a module's own function `(kind, packed, sources) -> operation`, which wraps only these: numba's type of its
        numbers, `packed`, and that number, times 0 what it returns. `operation(address)` reads `buffers(address)`, and works
        if there are any.
      dtype: float32 or float64.
      packed: whether it reads packed weights.
    """
    with _ONE_AT_A_TIME:  # threads may trace at once, and XLA takes a name only once
        return _registered(make, np.dtype(dtype).name, packed)


@functools.cache
def _registered(make: Callable[[Any, bool, int], Callable[[int], int]], name: str, packed: bool) -> str:
    operation = inspect.unwrap(make(getattr(numba.types, name), packed, sources()))
    variant = f"{name}.{'packed' if packed else 'plain'}"
    target = f"{operation.__module__}.{operation.__name__}.{variant}"
    # Numba's files are named after a function, and processes that write entries of one index at once can mix them up.
    codegen: Any = cpu_target.target_context.codegen  # type: ignore[reportAttributeAccessIssue]
    processor = zlib.crc32(repr(codegen().magic_tuple()).encode())
    operation.__qualname__ += f".{variant}.{processor:x}"
    made = _made(operation)
    _KEPT.append(made)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(made.ctypes), platform="cpu")
    return target


def _made(operation: Callable[[int], int]) -> Any:
    """Compiles an operation, or finds it on disk; a disk that cannot be used costs time and nothing else."""
    signature = WORD(WORD)
    try:
        return numba.cfunc(signature, cache=True)(operation)
    except Exception as error:  # no folder, no space, a file cut short; of what else is wrong the next line tells
        made = numba.cfunc(signature)(operation)
        warnings.warn(
            f"numba could not keep compiled loops on disk, or not read them there ({type(error).__name__}: {error}); every "
            "process compiles them anew. Set NUMBA_CACHE_DIR to a new folder, on a disk that can be written and has room",
            stacklevel=2,
        )
        return made


def sources() -> int:
    """Returns a number that depends on all that is written in this folder, and on what it chooses by the processor."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return zlib.crc32(b"".join([*texts, bytes([WIDE])]))


_KEPT: list[Any] = []  # XLA holds bare pointers into them


def _array_at(typing_context: Any, address: Any, shape: Any, kind: Any) -> Any:
    """Makes an array, without gaps, of what is at an address. shape: a tuple; kind: numba's type of the numbers."""
    array = numba.types.Array(kind.dtype, len(shape), "C")

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = context.make_array(array)(context, builder)
        item = context.get_constant(WORD, context.get_abi_sizeof(context.get_data_type(array.dtype)))
        sizes, strides = cgutils.unpack_tuple(builder, args[1]), [item]
        for size in reversed(sizes[1:]):
            strides.insert(0, builder.mul(strides[0], size))
        populate_array(made, builder.inttoptr(args[0], made.data.type), sizes, strides, item, meminfo=None)
        return made._getvalue()

    return array(WORD, numba.types.UniTuple(WORD, len(shape)), kind), build


_array: Any = intrinsic(_array_at)


@inlined
def words(address, size):  # type: ignore[no-untyped-def]
    """Reads `size` words from an address on."""
    return _array(address, (size,), np.int64)


@compiled
def buffers(address):  # type: ignore[no-untyped-def]
    """Returns the addresses of arguments and of results; none where XLA only asks for the version."""
    frame = words(address, 15)
    if frame[1] != 0 and _answered(frame[1]):
        return frame[:0], frame[:0]
    return words(frame[9], frame[7]), words(frame[14], frame[12])


@compiled
def _answered(extension_address):  # type: ignore[no-untyped-def]
    """Tells XLA, if it asks for that as when it registers an operation, for which version it was written."""
    extension = words(extension_address, 4)
    if extension[1] & 0xFFFFFFFF != METADATA:
        return False
    version = words(extension[3], 4)  # [3]: two integers of 32 bits, the major one first
    version[3] = MAJOR | MINOR << 32
    return True


@compiled
def attribute(address):  # type: ignore[no-untyped-def]
    """Returns the only attribute, a whole number."""
    frame = words(address, 21)
    return words(words(words(frame[20], 1)[0], 2)[1], 1)[0]


@compiled
def cube(buffer_address, dtype):  # type: ignore[no-untyped-def]
    """Reads a buffer `[T, *batch, X]` as `[T, N, X]`."""
    buffer = words(buffer_address, 6)
    rank, sizes = buffer[4], words(buffer[5], buffer[4])
    N = 1
    for axis in range(1, rank - 1):
        N *= sizes[axis]
    return _array(buffer[3], (sizes[0], N, sizes[rank - 1]), dtype)


@compiled
def matrix(buffer_address, dtype):  # type: ignore[no-untyped-def]
    """Reads a buffer `[*batch, X]` as `[N, X]`."""
    buffer = words(buffer_address, 6)
    rank, sizes = buffer[4], words(buffer[5], buffer[4])
    N = 1
    for axis in range(rank - 1):
        N *= sizes[axis]
    return _array(buffer[3], (N, sizes[rank - 1]), dtype)


@compiled
def flags(buffer_address):  # type: ignore[no-untyped-def]
    """Reads a buffer `[T, *batch]` of booleans as `[T, N]`; T is 0 if there are none."""
    buffer = words(buffer_address, 6)
    rank, sizes = buffer[4], words(buffer[5], buffer[4])
    N = 1
    for axis in range(1, rank):
        N *= sizes[axis]
    return _array(buffer[3], (sizes[0], N), np.bool_)
