"""Run the test files that reach a mutant's line, the closest first, until one fails."""

import dataclasses
import math
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence

from tests.mutation.sites import Mutant

LIMIT_S = 300.0  # CPU seconds; a mutant that outlives them is a survivor
Reach = dict[
    str, dict[int, list[str]]
]  # file -> line -> the test files that run it; line 0: all that run the file


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the tests said of one mutant.

    killed_by: the test file that failed; None: the mutant survived
    stage:     index of the pytest arguments under which it failed; None: it survived
    seconds:   of CPU, all runs together
    files:     how many test files reach the line
    note:      the failing test, or why nothing failed
    """

    killed_by: str | None
    stage: int | None
    seconds: float
    files: int
    note: str


def closest_first(mutant: Mutant, reach: Reach, cost: dict[str, float]) -> list[str]:
    """Return the test files that reach the line, by words shared with the module, then cost."""
    lines = reach.get(mutant.file, {})
    files = lines.get(mutant.line) or lines.get(0, [])
    words = set(re.split(r"[/_.]", mutant.file)) - {"tbptt", "py"}

    def key(file: str) -> tuple[int, float]:
        shared = len(words & set(re.split(r"[/_.]", file)))
        return -shared, cost.get(file, 0.0)

    return sorted(files, key=key)


class Tree:
    """A copy of the project in which one mutant at a time is tried."""

    def __init__(self, root: pathlib.Path, python: str):
        self.python, self.root = python, pathlib.Path(tempfile.mkdtemp(prefix="mutant-"))
        ignore = shutil.ignore_patterns(
            ".git", ".venv*", "runs", "__pycache__", ".pytest_cache", ".jax_cache"
        )
        shutil.copytree(root, self.root, dirs_exist_ok=True, ignore=ignore)

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def pytest(self, arguments: Sequence[str], limit_s: float) -> tuple[int | None, str, float]:
        """Return pytest's exit status (None past the limit), the first failing test, and the CPU
        seconds it took.

        The limit is of CPU time, so that a busy machine changes no verdict.
        """
        command = [self.python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(self.root)}
        whole = max(1, math.ceil(limit_s))
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (whole, whole)),
            )
            watchdog = threading.Timer(
                5 * LIMIT_S, os.killpg, (process.pid, signal.SIGKILL)
            )  # it waits for ever
            watchdog.start()
            _, status, usage = os.wait4(process.pid, 0)
            watchdog.cancel()
            process.returncode = os.waitstatus_to_exitcode(
                status
            )  # collected here: Popen must not wait again
            out.seek(0)
            said = out.read()
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        note = failed.group(1) if failed else said.strip().splitlines()[-1] if said.strip() else ""
        return (
            None if process.returncode < 0 else process.returncode,
            note,
            usage.ru_utime + usage.ru_stime,
        )

    def attempt(
        self, mutant: Mutant, files: Sequence[str], stages: Sequence[Sequence[str]]
    ) -> Outcome:
        """Run every stage over the files; a failing test or collection kills the mutant."""
        path, seconds = self.root / mutant.file, 0.0
        clean = path.read_text()
        path.write_text(mutant.apply(clean))
        try:
            for stage, extra in enumerate(stages):
                for group in filter(
                    None, (files[:1], files[1:5], files[5:])
                ):  # one process a group: starting costs seconds
                    status, note, took = self.pytest([*extra, *group], LIMIT_S - seconds)
                    seconds += took
                    if status is None or seconds > LIMIT_S:
                        return Outcome(
                            None, None, round(seconds, 1), len(files), "outlived the limit"
                        )
                    if status not in (0, 5):  # 5: the stage has no test in these files
                        return Outcome(
                            note.split("::")[0], stage, round(seconds, 1), len(files), note
                        )
        finally:
            path.write_text(clean)
        note = "no test fails" if files else "no test reaches the line"
        return Outcome(None, None, round(seconds, 1), len(files), note)


def healthy(root: pathlib.Path) -> None:
    """Exit where the tree's tests cannot run at all: everything would count as killed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_windows.py"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"mutants: the tests of an unchanged tree fail:\n{done.stdout[-2000:]}")
