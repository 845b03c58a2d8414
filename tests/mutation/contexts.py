"""A pytest plugin for `reach.py`: coverage with one context a test file, and test durations."""

import json
import os
import pathlib
import time

import coverage
import pytest

_FOLDER = pathlib.Path(os.environ["REACH_FOLDER"])
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
_rows: dict[str, dict[str, float]] = {}
_measured: coverage.Coverage | None = None


def pytest_configure():
    global _measured
    source = [str(pathlib.Path("tbptt").resolve())]
    _measured = coverage.Coverage(
        data_file=str(_FOLDER / f"cov.{_WORKER}"), source=source, config_file=False
    )
    _measured.start()


def pytest_runtest_setup(item):
    if _measured is not None:
        _measured.switch_context(item.nodeid.split("::")[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    start = time.perf_counter()
    result = yield
    _rows[item.nodeid] = {"wall": time.perf_counter() - start}
    return result


def pytest_sessionfinish():
    if _measured is not None:
        _measured.stop()
        _measured.save()
    (_FOLDER / f"rows.{_WORKER}.json").write_text(json.dumps(_rows))
