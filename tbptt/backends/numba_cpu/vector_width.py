"""The width of the vector registers that compiled loops use."""

from typing import Any

import numba
from llvmlite import binding
from numba.extending import intrinsic

# Whether the processor has 32 registers of 512 bits; otherwise 16 of 256 bits are assumed.
WIDE = bool(dict(binding.get_host_cpu_features()).get("avx512f"))


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
