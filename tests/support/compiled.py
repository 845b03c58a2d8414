"""Python entry points for the compiled functions of `tbptt.backends.numba_cpu`."""

import numba

from tbptt.backends.numba_cpu.xla_ffi import OPTIONS


def python_callable(function):
    """Compile a function with the options of the backend and with a Python entry point."""
    options = OPTIONS | {"no_cpython_wrapper": False, "no_cfunc_wrapper": False}
    return numba.njit(getattr(function, "py_func", function), **options)
