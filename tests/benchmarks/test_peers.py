"""The comparison with other libraries: stopping, processes, JSON, and refused systems."""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.support import peer_rows, program
from benchmarks.systems.registry import BEFORE, ON_CORES, OURS, TEXTBOOK, TORCH
from benchmarks.systems.work import Case
from tests.support.benchmark_rows import KEYS


def test_an_interrupted_run_keeps_the_finished_cases(monkeypatch):
    def measure_case(case, workers, repeats, compiles):
        if case.name == "second":
            raise KeyboardInterrupt
        return [{"case": case._asdict(), "system": "a system", "failed": "not run"}]

    class Idle:
        missing = None
        closed = 0

        def __init__(self, *_):
            pass

        def ready(self):
            return True

        def close(self):
            Idle.closed += 1

    monkeypatch.setattr(peers, "Worker", Idle)
    monkeypatch.setattr(peers, "measure_case", measure_case)
    monkeypatch.setattr(
        peers, "CASES", tuple(Case(name, 4, 3, 1, 2, 5) for name in ("first", "second", "third"))
    )
    flags = argparse.Namespace(
        cases=None, systems=None, quick=False, repeats=1, compiles=1, before=None
    )
    summary = peers.measure(flags)
    assert [row["case"]["name"] for row in summary["rows"]] == ["first"] and summary[
        "stopped_at"
    ] == "second"
    assert Idle.closed == len(peers.SYSTEMS)


def test_the_second_of_two_signals_is_ignored():
    before = signal.signal(signal.SIGTERM, peers.stop_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.exhaustive
def test_peers_from_processes_to_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(peers, "CASES", (Case("B=1 H=64", 4, 3, 1, 2, 5),))
    monkeypatch.setattr(peers, "WARM", 0.01)
    argv = [
        "--systems",
        OURS,
        "--repeats",
        "2",
        "--compiles",
        "1",
        "--out",
        str(tmp_path / "peers.json"),
        "--before",
        str(Path(__file__).parents[2]),
    ]
    summary = program.run("doc", peers.measure, add_flags=peers.add_flags, argv=argv)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and json.loads(out[0]) == json.loads((tmp_path / "peers.json").read_text())
    assert {(row["system"], row["form"]) for row in summary["rows"]} == {
        (system, form)
        for system in (OURS, BEFORE, TEXTBOOK)
        for form in ("one program", "per chunk")
    }
    ours = next(
        row for row in summary["rows"] if row["system"] == OURS and row["form"] == "one program"
    )
    for row in summary["rows"]:
        assert (
            row.keys() >= KEYS
            and row["loss_difference"] < 1e-5
            and row["repeats"] == 2 * peers.MORE
        )
        assert row["ratio"] == pytest.approx(row["seconds"] / ours["seconds"])
        assert row["steps_per_second"] == pytest.approx(12 / row["seconds"])
    assert BEFORE not in json.dumps(summary["targets"])
    reached = {row["against"].split(" as ")[0]: row["measured"] for row in summary["targets"]}
    assert (
        reached[TORCH] is None and reached["the fastest JAX peer"] > 0
    )  # PyTorch was not measured
    assert summary["environment"]["load_after"] and not summary["quick"]


def test_a_system_whose_losses_differ_is_refused(capsys):
    class Fake:
        def __init__(self, losses):
            self.losses = losses

        def prepare(self, case, compiles):
            prepared = {
                "compile_seconds": 1.0,
                "temp_bytes": 5,
                "losses": self.losses,
                "seconds": 0.1,
            }
            return {"per chunk": dict(prepared), "one program": dict(prepared)}

        def epoch(self, form, warm):
            assert self.losses[1] < 0.6, "a refused system must not be timed"
            return 0.1 if form == "one program" else 0.3

    class OnCores(Fake):
        def epoch(self, form, warm):
            return 0.05 if form == "one program" else 0.08

    good = [1.0, 0.5]
    workers = {
        OURS: Fake(good),
        BEFORE: OnCores(good),
        "nnx": Fake([1.0, 0.9]),
        TEXTBOOK: Fake(good),
    }
    rows = peers.measure_case(Case("B=1 H=64", 2, 3, 1, 2, 5), workers, 3, 1)
    assert {row["repeats"] for row in rows if "refused" not in row} == {
        3 * peers.MORE
    }  # as all are short
    refused = [row for row in rows if "refused" in row]
    assert (
        {row["system"] for row in refused} == {"nnx"}
        and len(refused) == 2
        and "seconds" not in refused[0]
    )
    targets = peer_rows.targets(rows)
    assert targets[0]["measured"] == pytest.approx(3.0) and TEXTBOOK in targets[0]["against"]
    assert targets[0]["against_any_form"]["ratio"] == pytest.approx(1.0)
    assert not targets[1]["reached"] and targets[1]["measured"] is None
    assert targets[2]["what"] == "times the compile time" and targets[2]["reached"]

    cores = {f"{OURS} {ON_CORES}": OnCores(good), f"{TEXTBOOK} {ON_CORES}": OnCores(good)}
    rows = peers.measure_case(Case("B=1 H=64", 2, 3, 1, 2, 5), workers | cores, 3, 1)
    target = peer_rows.targets(rows)[
        0
    ]  # ours at its fastest against theirs as documented; and all that is less flattering
    assert (
        target["measured"] == pytest.approx(6.0)
        and target["ours"] == f"{OURS} {ON_CORES}, one program"
    )
    assert target["default_unroll"] == pytest.approx(3.0) and target["against"].endswith(
        f"({TEXTBOOK})"
    )
    assert target["against_any_form"] == {
        "system": f"{TEXTBOOK} {ON_CORES}",
        "form": "one program",
        "ratio": pytest.approx(1.0),
    }
