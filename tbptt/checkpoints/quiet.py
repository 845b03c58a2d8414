"""Keep the log of orbax out of the console while checkpoints are saved."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tbptt.checkpoints.restore import PREFIX, UNFINISHED

_lock = threading.Lock()
_users = 0
_before: Callable[[Any], Any] | None = None  # the hook that ours replaced; None until then


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Drop what orbax logs and prints about a save that fails.

    On a full disk it logs a traceback for every array, and the writes of the other arrays, which
    end after its event loop is closed, print one each. The error itself is raised as
    CheckpointNotWritten. Other messages of the loggers and other exceptions are not affected. Calls
    may be nested and may overlap. The writes may end at any later time, so what drops their
    messages stays until the process ends.
    """
    global _users, _before  # noqa: PLW0603, the logger and the hook belong to the process
    with _lock:
        _users += 1
        if _users == 1:
            logging.getLogger("absl").addFilter(_is_not_of_orbax)
        if _before is None:
            _before, sys.unraisablehook = sys.unraisablehook, _hook
            logging.getLogger("asyncio").addFilter(_is_not_of_a_write)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                logging.getLogger("absl").removeFilter(_is_not_of_orbax)


def _hook(raised: Any) -> None:
    """Drop the exception of native code that calls a closed event loop; pass on all others."""
    trace, error = raised.exc_traceback, raised.exc_value
    called = trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
    closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if not (called and closed) and _before is not None:
        _before(raised)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


def _is_not_of_a_write(record: logging.LogRecord) -> bool:
    """Return False for the error of a write of ours that nothing awaits any more."""
    text = record.getMessage()
    return "exception was never retrieved" not in text or UNFINISHED + PREFIX not in text
