"""A save that fails prints nothing of orbax; other messages pass."""

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from tbptt.checkpoints.quiet import quiet_orbax

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


def test_a_full_disk_prints_nothing_of_orbax(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert run.stdout == "not written 2\nnot written 3\n"
    assert run.stderr == ""


def record(path):
    return logging.LogRecord("absl", logging.ERROR, path, 1, "words", (), None)


def test_other_messages_and_exceptions_pass(monkeypatch):
    seen, logger = [], logging.getLogger("absl")
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: seen.append(str(raised.exc_value)))
    before, own = sys.unraisablehook, str(Path("/x/site-packages/orbax/checkpoint/a.py"))
    with quiet_orbax():
        with quiet_orbax():
            pass
        assert not logger.filter(record(own)) and logger.filter(record("/home/orbax.py"))
        for words in ("Event loop is closed", "another"):
            sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(words)))  # pyright: ignore[reportArgumentType]
    assert seen == ["another"] and sys.unraisablehook is before
    assert logger.filter(record(own))
