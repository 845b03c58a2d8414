"""What compiled loops need of the system to share work between threads: words that several add to, memory, functions in C.

All of it is part of an operation's own object code, or found by its name when that is loaded: an address of this process
would be of no use in what is kept on disk for the next one.
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


def _of_the_system(name: str, takes: int, bits: int = 8 * BYTES) -> Any:
    """Makes a system's function callable, which returns a number of so many bits, or what is not to be read."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        kind = ir.FunctionType(ir.IntType(bits), [word] * takes)
        made = builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)
        return made if bits == word.width else builder.zext(made, word)

    if takes == 0:
        return intrinsic(lambda typing_context: (WORD(), build))
    return intrinsic(lambda typing_context, word: (WORD(WORD), build))


malloc, free = _of_the_system("malloc", 1), _of_the_system("free", 1)
WINDOWS = sys.platform == "win32"
give_way = _of_the_system("SwitchToThread" if WINDOWS else "sched_yield", 0, 32)


def _add(typing_context: Any, address: Any, value: Any) -> Any:
    """Adds to a word that threads share; returns what it was."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        return builder.atomic_rmw("add", builder.inttoptr(args[0], word.as_pointer()), args[1], "seq_cst")

    return WORD(WORD, WORD), build


def _call(typing_context: Any, function: Any, argument: Any) -> Any:
    """Calls a function in C, `word(word)`, by its address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(WORD)
        pointer = builder.inttoptr(args[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(pointer, [args[1]])

    return WORD(WORD, WORD), build


add: Any = intrinsic(_add)
call: Any = intrinsic(_call)


def address_in_c(function: Callable[[Any, Any], None]) -> Any:
    """Makes an intrinsic, of numba's type of the numbers, that returns the address of a function in C, `word(word)`.

    function: `(address, kind)`, which numba can compile, and whose name is no other's.
    """

    def address(typing_context: Any, kind: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            inner, word = numba.types.none(WORD, kind), context.get_value_type(WORD)
            made = context.compile_subroutine(builder, function, inner)
            outer = ir.FunctionType(word, [word])
            in_c = ir.Function(builder.module, outer, builder.module.get_unique_name("in_c"))
            in_c.linkage = "internal"
            within = ir.IRBuilder(in_c.append_basic_block())
            nothing = context.get_constant_null(kind)  # a type has no value
            context.call_internal_no_propagate(within, made.fndesc, inner, [in_c.args[0], nothing])
            within.ret(word(0))
            return builder.ptrtoint(in_c, word)

        return WORD(kind), build

    return intrinsic(address)
