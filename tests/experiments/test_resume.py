"""Tests that a killed, stopped and damaged run ends bitwise equal to an uninterrupted run.

The runs are processes. In the essential tier, test_faults.py tests the same within one process.
"""

import filecmp
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tbptt.checkpoints import finished
from tests.support.kill_runs import DAMAGES, KILLS

pytestmark = pytest.mark.exhaustive
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    environment = {
        **os.environ,
        "TBPTT_DATA": str(out / "cache"),
        "PYTHONWARNINGS": "ignore",
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_runs", str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out, json.loads((out / "found.json").read_text())


def arrays(run):
    """Return the step of the newest checkpoint, and every leaf of its state as bytes."""
    path = finished(run / "checkpoints")[-1]
    shapes = json.loads((path / "metadata.json").read_text())["leaves"]
    names = list(shapes)
    as_numpy = {
        f"leaf_{i}": ocp.RestoreArgs(restore_type=np.ndarray) for i, name in enumerate(names)
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        leaves = reader.restore(path / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return path.name, {
        names[int(leaf.removeprefix("leaf_"))]: np.asarray(value).tobytes()
        for leaf, value in leaves.items()
    }


def lines_of(run):
    return (run / "metrics.jsonl").read_text().splitlines()


def log_of(run):
    return pathlib.Path(f"{run}.log").read_text()


def assert_equals_uninterrupted(out, name):
    (step, whole), (other_step, other) = arrays(out / "whole"), arrays(out / name)
    assert step == other_step and step != "step_000000000"
    assert {leaf for leaf in whole if whole[leaf] != other.get(leaf)} == set() and len(
        whole
    ) == len(other) > 15
    assert {".params.cell.w_h", ".memory.inner.h", ".step", ".key"} <= set(whole)
    assert filecmp.cmp(
        out / "whole" / "predictions.csv", out / name / "predictions.csv", shallow=False
    )
    lines = [json.loads(line) for line in lines_of(out / name)]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert (
        steps == sorted(set(steps))
        and sum(line["updates"] for line in lines if line["kind"] == "train") == steps[-1]
    )
    valid = [
        {
            line["step"]: line["rmse"]
            for line in map(json.loads, lines_of(out / run))
            if line["kind"] == "valid"
        }
        for run in ("whole", name)
    ]
    assert valid[0] == valid[1] and len(valid[0]) >= 2


def test_a_run_killed_at_random_moments_and_stopped_loses_nothing(runs):
    out, found = runs
    assert found["killed"]["statuses"] == [-9] * KILLS and KILLS >= 6
    assert_equals_uninterrupted(out, "killed")


def test_damaged_checkpoints_are_named_and_skipped(runs):
    out, found = runs
    damaged = found["killed"]["damaged"]
    assert len(damaged) == len(DAMAGES) == 3
    log = log_of(out / "killed")
    for name, file in damaged.items():
        assert re.search(
            rf"warning: skipping a damaged checkpoint: {out}/killed/checkpoints/{name}: "
            rf"the file .*{file}",
            log,
        )
    # A checkpoint is named again if the run was killed before it wrote a newer one; no other is
    # named.
    assert set(re.findall(r"skipping a damaged checkpoint: \S*/(\w+): the file", log)) == set(
        damaged
    )
    for why in ("were written", "other bytes than were written", "is missing"):
        assert why in log


def test_a_stopped_run_saves_and_resumes_at_the_same_update(runs):
    out, found = runs
    assert (found["stopped"]["statuses"], found["interrupted"]["statuses"]) == ([143], [130])
    log = log_of(out / "killed")
    stopped = re.findall(r"Stopped by (?:SIGTERM|Ctrl-C) after update (\d+)\. To resume: (.*)", log)
    again = re.findall(r"resuming after update (\d+)", log)
    # No update was made twice.
    assert [step for step, _ in stopped] == again[-2:] and len(stopped) == 2
    assert {command for _, command in stopped} == {
        f"python -m experiments.train --resume {out}/killed"
    }
