"""Record which test files run which line of the library, and what each test file costs."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

PLUGIN = "tests.mutation.contexts"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """lines: file -> line -> test files, line 0 for the whole file; seconds: of each test file."""

    lines: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]


def record(root: pathlib.Path, out: pathlib.Path | None = None) -> Recorded:
    """Run the whole suite once under coverage, with one context a test file."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="reach-"))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", PLUGIN]
    environment = os.environ | {"REACH_FOLDER": str(folder), "PYTHONPATH": str(root)}
    if subprocess.run(command, cwd=root, env=environment).returncode != 0:
        sys.exit("mutants: a test of the unchanged tree fails, see above")
    recorded = combine(root, folder)
    if out:
        out.write_text(json.dumps(dataclasses.asdict(recorded)))
    return recorded


def combine(root: pathlib.Path, folder: pathlib.Path) -> Recorded:
    """Merge what the workers wrote."""
    import coverage

    lines: dict[str, dict[int, list[str]]] = {}
    for file in folder.glob("cov.*"):
        data = coverage.CoverageData(str(file))
        data.read()
        for measured in data.measured_files():
            name = str(pathlib.Path(measured).relative_to(root.resolve()))
            of_file = lines.setdefault(name, {})
            for line, contexts in data.contexts_by_lineno(measured).items():
                for at in (line, 0):
                    known = of_file.setdefault(at, [])
                    known += [c for c in contexts if c and c not in known]
    seconds: dict[str, float] = {}
    for file in folder.glob("rows.*.json"):
        for test, row in json.loads(file.read_text()).items():
            name = test.split("::")[0]
            seconds[name] = seconds.get(name, 0.0) + row["wall"]
    return Recorded(lines, seconds)


def load(file: pathlib.Path) -> Recorded:
    """Read what `record` wrote."""
    raw = json.loads(file.read_text())
    lines = {
        name: {int(line): tests for line, tests in of_file.items()}
        for name, of_file in raw["lines"].items()
    }
    return Recorded(lines, raw["seconds"])
