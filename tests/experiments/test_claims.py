"""Tests of exit statuses: 1 if a claim does not hold or a standard run misses a target."""

import dataclasses
import json
import pathlib
import sys
import types

import jax
import pytest
from matplotlib.figure import Figure

from experiments import lecture, truncation
from experiments.support.common import program, targets


def chapter(claims, numbers=(), judged=True):
    """Make an experiment with given claims and targets."""
    module = types.ModuleType("experiments.chapter", "A chapter.")
    module.Config = Config
    module.measure = lambda config: {
        "claims": list(claims),
        "targets": list(numbers),
        "judged": judged,
    }
    module.draw = lambda data, folder: None
    return module


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Flags of the chapter."""

    length: int = 3


def claim(number, holds=True):
    return program.claim(number, "text", 1, "1", holds)


def ended(run, capsys):
    """Return (exit status, summary on the last line of stdout, stderr) of a program."""
    status = 0
    capsys.readouterr()
    try:
        run()
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert summary == json.loads((pathlib.Path(summary["folder"]) / "summary.json").read_text())
    return status, summary, err


@pytest.fixture
def run_chapter(tmp_path, capsys, monkeypatch):
    """Run a chapter as `python -m experiments.chapter FLAGS` does."""

    def run(module, *flags):
        monkeypatch.setitem(sys.modules, "experiments.chapter", module)
        monkeypatch.setattr(sys, "argv", ["chapter.py", "--out", str(tmp_path / "run"), *flags])
        return ended(lambda: program.run("chapter.py"), capsys)

    return run


@pytest.mark.parametrize("broken", [(), (8,), (2, 8)])
def test_a_failed_claim_is_named_and_gives_exit_status_1(broken, run_chapter):
    status, summary, err = run_chapter(
        chapter([claim(n, n not in broken) for n in (1, 2, 8)]), "--quick"
    )
    messages = {(): "", (8,): "error: claim 8 does not hold (see `claims` in the summary)\n"}
    assert status == bool(broken) and [c["holds"] for c in summary["claims"]] == [
        n not in broken for n in (1, 2, 8)
    ]
    assert (
        messages.get(broken, "error: claims 2, 8 do not hold (see `claims` in the summary)\n")
        in err
    )
    assert ("error:" in err) == bool(broken)


def test_a_run_too_short_for_its_claims_warns(run_chapter):
    status, _, err = run_chapter(chapter([claim(8, False)], judged=False))
    assert status == 0 and "warning: claim 8 does not hold" in err and "error:" not in err


@pytest.mark.parametrize(
    "flags, status", [([], 1), (["--seed", "3"], 1), (["--quick"], 0), (["--length", "4"], 0)]
)
def test_a_missed_target_gives_exit_status_1_for_standard_runs_only(flags, status, run_chapter):
    got, summary, err = run_chapter(
        chapter([claim(1)], [targets.expect("MSE", 2.0, at_most=1.0)]), *flags
    )
    assert got == status and not summary["reached"]
    assert ("error: target missed: MSE (see `targets` in the summary)" in err) == bool(status)
    assert ("warning: target missed: MSE" in err) == (not status)


@pytest.mark.parametrize("broken", [None, 8])
def test_the_lecture_exits_with_1_if_a_claim_does_not_hold(broken, tmp_path, capsys, monkeypatch):
    module = chapter([claim(n, n != broken) for n in range(1, 13)])
    monkeypatch.setattr(lecture, "CHAPTERS", ((module, "Heading", "Text."),))
    status, summary, err = ended(
        lambda: lecture.run(["--quick", "--out", str(tmp_path / "lecture")]), capsys
    )
    assert status == (broken is not None) and [c["holds"] for c in summary["claims"]] == [
        n != broken for n in range(1, 13)
    ]
    assert ("error: claim 8 does not hold" in err) == (broken is not None)
    page = pathlib.Path(summary["page"]).read_text()
    assert ("11 of 12 claims hold; these do not: 8." if broken else "12 of 12 claims hold.") in page
    assert ("does not hold</td>" in page) == (broken is not None)


def test_a_quick_lecture_restores_the_compiler_settings(tmp_path, capsys, monkeypatch):
    seen, module = [], chapter([claim(n) for n in range(1, 13)])
    measure = module.measure
    module.measure = lambda config: (
        seen.append(jax.config.values["jax_disable_most_optimizations"]),
        measure(config),
    )[1]
    monkeypatch.setattr(lecture, "CHAPTERS", ((module, "Heading", "Text."),))
    before = jax.config.values["jax_disable_most_optimizations"]
    lecture.main(lecture.Config(quick=True, out=tmp_path / "quick"))
    lecture.main(lecture.Config(out=tmp_path / "full"))
    assert seen == [True, False] and jax.config.values["jax_disable_most_optimizations"] == before


def costs(**more):
    """Return results of `truncation.cost` for a cell with a carry of 100 bytes."""
    same = {"carry_bytes": 100, "step_bytes": 8.0, "full_seconds": 1.0, "truncated_seconds": 1.0}
    same |= {"full_compile_seconds": 1.0, "truncated_compile_seconds": 1.0}
    shorter = same | {
        "length": 1000,
        "full_bytes": 155_000,
        "truncated_bytes": 12_000,
        "plan_bytes": 210_000,
    }
    longer = same | {
        "length": 2000,
        "full_bytes": 305_000,
        "truncated_bytes": 20_000,
        "plan_bytes": 410_000,
    }
    return shorter, longer | more


@pytest.mark.parametrize(
    "change, holds",
    [
        ({}, [True, True]),
        ({"full_bytes": 515_000}, [False, False]),  # more residuals than planned
        # Fewer bytes than the carries, so some are rematerialised.
        ({"full_bytes": 230_000}, [False, False]),
        ({"truncated_bytes": 21_000}, [True, False]),  # more than a copy of the data
        ({"truncated_bytes": 40_000}, [False, False]),  # more than a tenth of the full gradient
    ],
)
def test_claim_8_fails_if_memory_differs_from_the_documented_formula(change, holds):
    assert [row["holds"] for row in truncation.memory_claims(*costs(**change))] == holds


@pytest.mark.exhaustive
def test_all_twelve_claims_of_the_lecture_hold(tmp_path, capsys, monkeypatch):
    """The figures are built; test_experiments.py draws one."""
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **how: pathlib.Path(path).write_bytes(b"P")
    )
    with jax.enable_x64(False):
        status, summary, err = ended(
            lambda: lecture.run(["--quick", "--out", str(tmp_path / "run")]), capsys
        )
    assert status == 0, err[-2000:]
    assert [c["claim"] for c in summary["claims"]] == list(range(1, 13)) and all(
        c["holds"] for c in summary["claims"]
    )
