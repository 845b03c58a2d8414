"""System functions for compiled loops: atomic addition, memory, yielding, calls by address.

The code is part of the compiled operation, or linked by name when it is loaded. Addresses of this
process would be invalid in the code that numba keeps on disk.
"""

import sys
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

WORD = numba.types.intp
BYTES = 8  # of a word


def _system_function(name: str, takes: int, bits: int = 8 * BYTES) -> Any:
    """Make an intrinsic that calls a C function of words; its result has `bits` bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        function_type = ir.FunctionType(ir.IntType(bits), [word] * takes)
        made = builder.call(
            cgutils.get_or_insert_function(builder.module, function_type, name), args
        )
        return made if bits == word.width else builder.zext(made, word)

    if takes == 0:
        return intrinsic(lambda typing_context: (WORD(), build))
    return intrinsic(lambda typing_context, word: (WORD(WORD), build))


malloc, free = _system_function("malloc", 1), _system_function("free", 1)
WINDOWS = sys.platform == "win32"
yield_thread = _system_function("SwitchToThread" if WINDOWS else "sched_yield", 0, 32)


def _add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add atomically to a word; return its former value."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        return builder.atomic_rmw(
            "add", builder.inttoptr(args[0], word.as_pointer()), args[1], "seq_cst"
        )

    return WORD(WORD, WORD), build


def _call(typing_context: Any, function: Any, argument: Any) -> Any:
    """Call a C function `word(word)` by its address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        pointer = builder.inttoptr(args[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(pointer, [args[1]])

    return WORD(WORD, WORD), build


add: Any = intrinsic(_add)
call: Any = intrinsic(_call)


def address_in_c(function: Callable[[Any, Any], None]) -> Any:
    """Make an intrinsic that returns the address of a C function `word(word)`.

    Args:
      function: `(address, dtype)`, which numba can compile, with a unique name. The argument of the
        intrinsic is `dtype`, numba's type of the numbers.
    """

    def address(typing_context: Any, dtype: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            inner, word = numba.types.none(WORD, dtype), context.get_value_type(WORD)
            made = context.compile_subroutine(builder, function, inner)
            outer = ir.FunctionType(word, [word])
            in_c = ir.Function(builder.module, outer, builder.module.get_unique_name("in_c"))
            in_c.linkage = "internal"
            within = ir.IRBuilder(in_c.append_basic_block())
            nothing = context.get_constant_null(dtype)  # a type has no value
            context.call_internal_no_propagate(within, made.fndesc, inner, [in_c.args[0], nothing])
            within.ret(word(0))
            return builder.ptrtoint(in_c, word)

        return WORD(dtype), build

    return intrinsic(address)
