"""The other end of `benchmarks.systems.serve`: a system in a process of its own, asked one thing at a time."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


class WorkerError(RuntimeError):
    """A system could not do what it was asked; the message is its own."""


class Worker:
    """A child process that holds one system. `missing` is the answer's dict where a package is not installed, else None."""

    def __init__(self, name: str):
        self.name = name
        # A cache of compiled programs would make every second compilation look free.
        env = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
        command = [sys.executable, "-m", "benchmarks.systems.serve", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.missing: dict[str, Any] | None = None

    def ready(self) -> bool:
        """Waits until the system is imported; False if it is missing."""
        reply = self._read()
        self.missing = reply if "missing" in reply else None
        return self.missing is None

    def prepare(self, case: Mapping[str, Any], compiles: int) -> dict[str, Any]:
        """Compiles every form of a case so many times, and warms it up; see `serve`."""
        return self._ask({"do": "prepare", "case": dict(case), "compiles": compiles})["forms"]

    def epoch(self, form: str, *, warm: float) -> float:
        """Runs one epoch; returns its seconds, by the system's own clock."""
        return self._ask({"do": "epoch", "form": form, "warm": warm})["seconds"]

    def close(self) -> None:
        """Ends the process: it stops when its stdin ends."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended before, and its rows say so: the others' must not be lost
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"{self.name}: the process has ended") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name}: the process ended with status {self._process.wait()}, see its messages above")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.name}: {reply['error']}")
        return reply
