"""Tests of the parts that all experiments share: computed claims, figures, and one line of JSON."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments import gates, lecture, repeated_tanh
from experiments.support.common import page, program, run_folder
from experiments.support.lecture import reference
from tbptt.diagnostics import overflow_step

ROOT = Path(__file__).parents[2]


@pytest.mark.exhaustive
def test_a_program_ends_with_its_summary_as_one_line_of_json(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.repeated_tanh",
        "--quick",
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    check_run(tmp_path / "run", json.loads(done.stdout))
    with pytest.raises(FileExistsError, match="already contains a run"):
        program.execute(repeated_tanh, repeated_tanh.Config(quick=True, out=tmp_path / "run"))


def check_run(folder, summary):
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["quick"] and all(row["holds"] for row in summary["claims"])
    for name in ("config.json", "metrics.jsonl", "data.json", *summary["figures"]):
        assert (folder / name).stat().st_size > 0


def test_every_claim_of_the_lecture_has_a_chapter():
    rows = [
        {"claim": n, "text": "t", "measured": 1, "expected": "e", "holds": True}
        for n in range(1, 13)
    ]
    assert [c["holds"] for c in lecture.combine(rows)] == [True] * 12
    rows[4]["holds"] = False
    # One fails, one was not measured.
    assert [c["claim"] for c in lecture.combine(rows[:-1]) if not c["holds"]] == [5, 12]


def test_full_bptt_equals_the_explicit_sum_over_time():
    explicit, differences = reference.bptt_errors(seed=3)
    assert explicit < 1e-13 and differences < 1e-7


def test_overflow_in_integer_arithmetic_equals_that_of_the_device():
    one_percent = {d: float(jnp.asarray(1.01, d)) for d in ("float16", "bfloat16", "float32")}
    counted = {d: reference.overflow_in_integers(w, d) for d, w in one_percent.items()}
    assert counted == {"float16": 1143, "bfloat16": 128 * 96, "float32": 8917}
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        for w in (1.1, 1.7, 2.0, 5.0):
            w = float(jnp.asarray(w, dtype))
            assert reference.overflow_in_integers(w, dtype) == overflow_step(w, dtype)
    assert (
        reference.overflow_in_integers(1.0, "float32") is None
        and reference.overflow_in_integers(1.01, "float64", 100) is None
    )


def test_the_longest_learnt_lag_is_before_the_first_failure():
    lags = (10, 30, 100, 300)
    for losses, longest, beyond in (
        ([0.01, 0.02, 0.5, 0.03], 30, [300]),
        ([0.01] * 4, 300, []),
        ([0.2, 0.01, float("nan"), 1.0], 0, [30]),
        ([0.0, 0.1, 1.0, 1.0], 10, []),
    ):
        assert (
            gates.longest_learnt(lags, losses) == longest and gates.missed(lags, losses) == beyond
        )


def test_a_run_writes_its_files_and_the_page_is_self_contained_and_escaped(tmp_path):
    folder = tmp_path / "run"
    check_run(folder, program.execute(repeated_tanh, repeated_tanh.Config(quick=True, out=folder)))
    section = {"heading": "a < b", "text": "x",
               "rows": [program.claim(1, "<script>", 1, "2", False)],
               "figures": [folder / "repeated_tanh.png"], "command": "c"}  # fmt: skip
    page.write(tmp_path / "page.html", "title", "intro", [section], "footer")
    text = (tmp_path / "page.html").read_text()
    assert "a &lt; b" in text and "<script>" not in text and "does not hold" in text
    assert 'src="data:image/png;base64,' in text and "http" not in text


def test_a_folder_with_a_run_is_refused(tmp_path):
    config = program.Common(out=tmp_path)
    run_folder.open_folder(tmp_path, "x", config)
    with pytest.raises(FileExistsError, match="already contains a run"):
        run_folder.open_folder(tmp_path, "x", config)
