"""Results: a program writes what it prints, files are named by machine and date, and the README's table hides nothing."""

import json

import pytest

from benchmarks import __main__ as all_of_them
from benchmarks import table
from benchmarks.support import program
from benchmarks.systems.registry import TORCH


def test_a_program_writes_what_it_prints(capsys, tmp_path):
    drawn = []
    rows = [program.target("c", "times as fast", "x", 2.0, 1.5), program.target("c", "bytes", "x", 2.0, 1.5, most=True)]
    argv = ["--quick", "--out", str(tmp_path / "new" / "r.json")]
    summary = program.run(
        "doc", lambda flags: {"targets": rows}, draw=lambda s, p: drawn.append((s, p)), argv=argv
    )  # fmt: skip
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((tmp_path / "new" / "r.json").read_text()) == drawn[0][0]
    assert summary["quick"] and drawn[0][1] == tmp_path / "new" / "r.png"
    assert [row["reached"] for row in rows] == [False, True]
    assert "NOT reached: c: 1.5 times as fast against x (at least 2)" in captured.err
    assert "\nreached: c: 1.5 bytes against x (at most 2)" in captured.err


def test_results_are_named_by_machine_and_date(tmp_path):
    date = all_of_them.datetime.date(2026, 11, 23)
    name = all_of_them.result_file(tmp_path, "peers", "NVIDIA H100 80GB HBM3", date, quick=False).name
    assert name == "peers_h100_2026-11-23.json"
    assert all_of_them.result_file(tmp_path, "gpu", "cpu", date, quick=True).name == "gpu_cpu_2026-11-23_quick.json"


def result(folder, file, *, quick=False, date="2026-01-01", device="cpu", ratio=0.5, **more):
    case = {"name": "B=1 H=64"}
    versions = {"jax": "1.2"}
    machine = {"device": device, "date": date, "cpu": "C", "cores": 2, "load_before": [0.1], "versions": versions} | more
    row = {"case": case, "form": "per chunk", "system": "nnx", "ratio": ratio}
    best = row | {"system": "haiku", "ratio": 7.25}
    wanted = program.target("B=1 H=64", "times as fast", "nnx", 3.0, ratio)
    missing = {"case": None, "system": TORCH, "missing": "torch", "remedy": "pip"}
    summary = {"quick": quick, "rows": [row, best, missing], "targets": [wanted], "environment": machine}
    (folder / file).write_text(json.dumps(summary))


def test_the_readme_table_hides_nothing(tmp_path):
    result(tmp_path, "peers_cpu_2026-02-02_quick.json", quick=True, date="2026-02-02", ratio=9.0)
    result(tmp_path, "peers_cpu_2026-01-02.json", date="2026-01-02")
    result(tmp_path, "peers_cpu_2026-01-01.json", ratio=8.0)
    result(tmp_path, "peers_large_cpu_2026-02-03.json", date="2026-02-03", ratio=0.25, vectors="AVX2")
    result(tmp_path, "peers_h100_2026-03-03.json", date="2026-03-03", device="NVIDIA H100", ratio=6.0)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for _ in range(2):  # writing it again changes nothing
        # Full before quick, then newest; the long cases have a file of their own.
        files = ["peers_cpu_2026-01-02.json", "peers_large_cpu_2026-02-03.json"]
        assert table.write(readme, tmp_path) == [tmp_path / file for file in files]
        text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| B=1 H=64 | nnx | times as fast | at least 3 | 0.5 | **NOT reached** |" in text
    assert "Smallest ratio 0.5 (B=1 H=64, nnx, per chunk), largest 7.25 (B=1 H=64, haiku, per chunk)." in text
    assert "Not compared: PyTorch: torch." in text and "No results yet of: full_vs_truncated" in text
    assert "Smallest ratio 0.25 (B=1 H=64, nnx, per chunk)" in text and " with AVX2, " in text
    assert '`python -m benchmarks.peers --cases "B=64 H=512"`: 2026-02-03' in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="must hold each of these two lines once"):
        table.write(readme, tmp_path)
