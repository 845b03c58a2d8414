"""The client of `benchmarks.systems.serve`: one system in a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WorkerError(RuntimeError):
    """A command failed in the process of a system; the message is that of the system."""


class Worker:
    """A child process that runs one system.

    `missing` is the reply of the process if a package is not installed, otherwise None.
    """

    def __init__(self, name: str, folder: Path | None = None):
        """Start the process, of this checkout or of the one in `folder`."""
        self.name = name
        # With a cache of compiled programs every second compilation would seem to cost nothing.
        cache = "JAX_COMPILATION_CACHE_DIR"
        env = {key: value for key, value in os.environ.items() if key != cache}
        command = [sys.executable, "-m", "benchmarks.systems.serve", name]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=env, cwd=folder
        )
        self.missing: dict[str, Any] | None = None

    def ready(self) -> bool:
        """Wait until the system is imported, and return whether its packages are installed."""
        reply = self._read()
        self.missing = reply if "missing" in reply else None
        return self.missing is None

    def prepare(self, case: Mapping[str, Any], compiles: int) -> dict[str, Any]:
        """Compile every form of a case `compiles` times, and warm it up; see `serve`."""
        return self._send({"do": "prepare", "case": dict(case), "compiles": compiles})["forms"]

    def epoch(self, form: str, *, warm: float) -> float:
        """Run one epoch and return its seconds, measured by the process itself."""
        return self._send({"do": "epoch", "form": form, "warm": warm})["seconds"]

    def close(self) -> None:
        """End the process by closing its stdin."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has already ended, which its rows report
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _send(self, command: dict[str, Any]) -> dict[str, Any]:
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
            status = self._process.wait()
            raise WorkerError(
                f"{self.name}: the process ended with status {status}; see its messages above"
            )
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.name}: {reply['error']}")
        return reply
