"""Vectors as wide as the processor has them."""

from typing import Any

import numba
from llvmlite import binding
from numba.extending import intrinsic

WIDE = bool(dict(binding.get_host_cpu_features()).get("avx512f"))  # registers of 512 bits, 32 of them; else 16 of 256


def _wide(typing_context: Any) -> Any:
    """Lets LLVM fill the widest registers in the function that calls this.

    By itself it takes 256 bits of 512 on processors whose clock once slowed down for more.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if WIDE:  # set.add: llvmlite's own takes single words only, and this is a name with a value
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return numba.types.void(), build


wide: Any = intrinsic(_wide)
