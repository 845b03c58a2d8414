"""A claim that does not hold, or an expected number that a standard run misses, is exit status 1."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from experiments import lecture
from experiments.support import known, program

ROOT = pathlib.Path(__file__).parents[2]


def chapter(claims, numbers=()):
    """A program of one measurement: its claims hold or do not."""
    module = types.ModuleType("experiments.chapter", "A chapter.")
    module.Config = dataclasses.make_dataclass("Config", [], bases=(program.Common,), frozen=True)
    module.measure = lambda config: {"claims": list(claims), "known": list(numbers)}
    module.draw = lambda data, folder: None
    return module


def finished(summary, capsys):
    """(exit status, summary on stdout, stderr) of `program.finish`."""
    status = 0
    capsys.readouterr()
    try:
        program.finish(summary)
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    return status, json.loads(out.splitlines()[-1]), err


def claim(number, holds=True):
    return program.claim(number, "text", 1, "1", holds)


@pytest.mark.parametrize("broken", [(), (8,), (2, 8)])
def test_a_claim_that_does_not_hold_is_exit_status_1_and_named(broken, tmp_path, capsys):
    module = chapter([claim(n, n not in broken) for n in (1, 2, 8)])
    summary = program.execute(module, module.Config(out=tmp_path / "run"))
    status, printed, err = finished(summary, capsys)
    said = {(): "", (8,): "error: claim 8 does not hold (see `claims` in the summary)\n"}
    assert status == bool(broken) and printed["claims"] == summary["claims"]
    assert err == said.get(broken, "error: claims 2, 8 do not hold (see `claims` in the summary)\n")


@pytest.mark.parametrize("standard, quick, status", [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_a_missed_number_is_exit_status_1_of_a_standard_run_only(standard, quick, status, tmp_path, capsys):
    module = chapter([claim(1)], [known.expect("error", 2.0, at_most=1.0)])
    summary = program.execute(module, module.Config(out=tmp_path / "run")) | {"standard": standard, "quick": quick}
    got, printed, err = finished(summary, capsys)
    assert got == status and not printed["reached"]
    assert err.startswith("error: not reached: error" if status else "warning: not reached: error")


@pytest.mark.parametrize("broken", [None, 8])
def test_the_lecture_exits_with_1_where_one_of_its_twelve_claims_does_not_hold(broken, tmp_path, capsys, monkeypatch):
    module = chapter([claim(n, n != broken) for n in range(1, 13)])
    monkeypatch.setattr(lecture, "CHAPTERS", ((module, "Heading", "Text."),))
    summary = lecture.main(lecture.Config(quick=True, out=tmp_path / "lecture"))
    status, printed, err = finished(summary, capsys)
    assert status == (broken is not None) and [c["holds"] for c in printed["claims"]] == [n != broken for n in range(1, 13)]
    assert ("claim 8 does not hold" in err) == (broken is not None)
    assert "does not hold" in pathlib.Path(printed["page"]).read_text() or broken is None


@pytest.mark.exhaustive
def test_all_twelve_claims_of_the_lecture_hold(tmp_path):
    command = [sys.executable, "-m", "experiments.lecture", "--quick", "--out", str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert [c["claim"] for c in summary["claims"]] == list(range(1, 13)) and all(c["holds"] for c in summary["claims"])
