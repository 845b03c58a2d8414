"""Compiled functions as Python calls them: those of `tbptt.backends.numba_cpu` have no way in but from each other."""

import numba

from tbptt.backends.numba_cpu.xla_ffi import OPTIONS


def callable_here(function):
    """Compiles a function, or one that is `compiled` already, once more, with the same options and a way in."""
    options = OPTIONS | {"no_cpython_wrapper": False, "no_cfunc_wrapper": False}
    return numba.njit(getattr(function, "py_func", function), **options)
