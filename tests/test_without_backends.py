"""The library works without its backends and without numba, which nothing else imports."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Refuses to import numba, as where it is not installed.
NO_NUMBA = "import sys; sys.modules['numba'] = None\n"


@pytest.fixture
def copy(tmp_path, request):
    """A copy of the library, and more folders if given, without tbptt/backends and numba."""
    for folder in ("tbptt", *getattr(request, "param", ())):
        ignored = shutil.ignore_patterns("__pycache__", "results", "backends")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(folder, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


IMPORT_ALL = """
import sys; sys.path.insert(0, "."); sys.modules["numba"] = None
import importlib, pathlib, tbptt
assert pathlib.Path(tbptt.__file__).parent == pathlib.Path("tbptt").resolve(), tbptt.__file__
for file in sorted(pathlib.Path("tbptt").rglob("*.py")):
    importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
"""


def test_every_module_is_imported_without_backends(copy):
    done = run(copy, "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("copy", [("tests",)], indirect=True)
def test_training_passes_its_tests_without_backends(copy):
    """A cell runs, is differentiated and trained; import-linter checks that no other module can
    import a backend, inside of a function either."""
    tests = ["tests/unroll/test_unroll.py", "tests/losses/test_sequence.py", "tests/test_export.py"]
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not exhaustive",
        "-c",
        "pyproject.toml",
        "--rootdir",
        ".",
    ]
    done = run(
        copy,
        "-c",
        NO_NUMBA + "import pytest; sys.exit(pytest.main(sys.argv[1:]))",
        *options,
        *tests,
    )
    assert done.returncode == 0 and " passed" in done.stdout, (
        done.stdout[-3000:] + done.stderr[-2000:]
    )
