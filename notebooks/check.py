"""Run every notebook of this folder in a fresh kernel, and report the error of a failing cell.

    python notebooks/check.py [--write] [NOTEBOOK ...]

Two run at a time. The files are not changed, unless --write stores the new outputs in them.
"""

import functools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).resolve().parent
CELL_TIMEOUT = 600  # seconds


def main() -> int:
    write = "--write" in sys.argv[1:]
    given = [Path(argument) for argument in sys.argv[1:] if argument != "--write"]
    paths = given or sorted(FOLDER.glob("*.ipynb"))
    if not paths:
        print(f"no notebook in {FOLDER}", file=sys.stderr)
        return 1
    failed = 0
    with ThreadPoolExecutor(2) as threads:
        for path, (error, seconds) in zip(
            paths, threads.map(functools.partial(timed_run, write=write), paths), strict=True
        ):
            print(
                f"{path.name}: {'ok' if error is None else 'FAILED'}, {seconds:.0f} s", flush=True
            )
            if error is not None:
                print(error, file=sys.stderr)
                failed += 1
    return 1 if failed else 0


def timed_run(path: Path, write: bool) -> tuple[Exception | None, float]:
    """Execute a notebook, and return its error or None, and the seconds that it took."""
    start = time.perf_counter()
    return run(path, write), time.perf_counter() - start


def run(path: Path, write: bool) -> Exception | None:
    """Execute a notebook with this interpreter, and return the error or None."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": FOLDER}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return error
    if write:
        for cell in notebook.cells:  # times of execution would change in every run
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, path)
    return None


if __name__ == "__main__":
    sys.exit(main())
