"""A save that fails prints nothing of orbax; other messages pass."""

import asyncio
import logging
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tbptt.checkpoints import CheckpointNotWritten, Checkpoints, quiet


def test_a_full_disk_prints_nothing_of_orbax(tmp_path, capfd, caplog):
    state = {f"leaf{i}": np.random.default_rng(i).normal(size=(300, 300)) for i in range(8)}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, state, 1)
        checkpoints.wait()
        # Writes of arrays fail, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        try:
            for step in (2, 3):
                with pytest.raises(CheckpointNotWritten):
                    checkpoints.save(step, state, step)
                    checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert capfd.readouterr() == ("", "") and not caplog.records


def record(path, words="words"):
    return logging.LogRecord("absl", logging.ERROR, path, 1, words, (), None)


def test_other_messages_and_exceptions_pass(monkeypatch):
    seen, logger = [], logging.getLogger("absl")
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: seen.append(str(raised.exc_value)))
    monkeypatch.setattr(quiet, "_before", None)  # as in a new process
    own = str(Path("/x/site-packages/orbax/checkpoint/a.py"))
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed") as caught:
        loop.call_soon_threadsafe(print)
    late, trace = caught.value, caught.value.__traceback__.tb_next  # native code has no frame

    def raise_unseen():
        for words, where in (("", trace), ("another", trace), ("new", None)):
            error = RuntimeError(words) if words else late
            raised = SimpleNamespace(exc_value=error, exc_traceback=where)
            sys.unraisablehook(raised)  # pyright: ignore[reportArgumentType]
        for error in (late, ValueError("late")):
            raised = SimpleNamespace(exc_value=error, exc_traceback=caught.value.__traceback__)
            sys.unraisablehook(raised)  # pyright: ignore[reportArgumentType]

    with quiet.quiet_orbax():
        with quiet.quiet_orbax():
            pass
        assert not logger.filter(record(own)) and logger.filter(record("/home/orbax.py"))
        raise_unseen()
    passed = ["another", "new", "Event loop is closed", "late"]
    assert seen == passed
    raise_unseen()  # a write may end after the checkpoints are closed
    assert seen == 2 * passed and logger.filter(record(own))
    awaited = logging.getLogger("asyncio")
    for words, shown in (("a/unfinished_step_2/b", False), ("a/other/b", True)):
        text = f"Task exception was never retrieved\nfuture: ValueError('{words}')"
        for message, passes in ((text, shown), (f"Executing {words} took 1 s", True)):
            assert bool(awaited.filter(record("a.py", message))) == passes
