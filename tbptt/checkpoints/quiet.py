"""Keep the log of orbax out of the console while checkpoints are saved."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_lock = threading.Lock()
_users = 0


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Drop what orbax logs and prints about a save that fails.

    On a full disk it logs a traceback for every array, and the callbacks of the other arrays print
    one each. The error itself is raised as CheckpointNotWritten. Other messages of the absl logger
    and other exceptions are not affected. Calls may be nested and may overlap.
    """
    global _users  # noqa: PLW0603, the logger and the hook belong to the process
    with _lock:
        _users += 1
        if _users == 1:
            logging.getLogger("absl").addFilter(_is_not_of_orbax)
            _Hook.before, sys.unraisablehook = sys.unraisablehook, _Hook.call
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                logging.getLogger("absl").removeFilter(_is_not_of_orbax)
                if sys.unraisablehook is _Hook.call:  # else another hook calls ours
                    sys.unraisablehook = _Hook.before


class _Hook:
    """The hook for exceptions in callbacks, and the one that it replaces."""

    before: Callable[[Any], Any]

    @staticmethod
    def call(raised: Any) -> None:
        # A write that ends after orbax has closed its event loop, because another one failed.
        error = raised.exc_value
        if _users and isinstance(error, RuntimeError) and str(error) == "Event loop is closed":
            return
        _Hook.before(raised)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts
