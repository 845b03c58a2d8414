"""A save that fails prints nothing of orbax; other messages pass."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tbptt.checkpoints import quiet

PROGRAM = """
import logging, resource, signal, sys, threading
from pathlib import Path
import numpy as np
from tbptt.checkpoints import Checkpoints, CheckpointNotWritten

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {f"leaf{i}": np.random.default_rng(i).normal(size=(300, 300)) for i in range(8)}
with Checkpoints(Path(sys.argv[1]), {}) as checkpoints:
    checkpoints.save(1, state, 1)
    checkpoints.wait()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # writes fail as on a full disk
    for step in (2, 3):
        try:
            checkpoints.save(step, state, step)
            checkpoints.wait()
        except CheckpointNotWritten:
            print("not written", step)
"""


@pytest.mark.exhaustive  # in a process of its own: orbax prints when threads end
def test_a_full_disk_prints_nothing_of_orbax(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert run.stdout == "not written 2\nnot written 3\n"
    assert run.stderr == ""


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
