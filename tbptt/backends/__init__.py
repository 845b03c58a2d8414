"""Optional backends that run a cell through time: `numba_cpu`, `pallas_gpu`; imported lazily."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from tbptt.backends import numba_cpu as numba_cpu
    from tbptt.backends import pallas_gpu as pallas_gpu

_BACKENDS = ("numba_cpu", "pallas_gpu")


def __getattr__(name: str) -> _Any:
    if name in _BACKENDS:
        return _importlib.import_module(f"tbptt.backends.{name}")
    raise AttributeError(f"module 'tbptt.backends' has no attribute {name!r}; it has {_BACKENDS}")


def __dir__() -> list[str]:
    return sorted(_BACKENDS)
