"""Results: written files equal the printed summary, their names, and the tables made of them."""

import json
import shutil

import pytest

from benchmarks import __main__ as all_of_them
from benchmarks import table
from benchmarks.support import program
from benchmarks.systems.registry import TORCH


def test_the_written_summary_equals_the_printed_one(capsys, tmp_path):
    drawn = []
    rows = [
        program.target("c", "times as fast", "x", 2.0, 1.5),
        program.target("c", "bytes", "x", 2.0, 1.5, most=True),
    ]
    argv = ["--quick", "--out", str(tmp_path / "new" / "r.json")]
    summary = program.run(
        "doc", lambda flags: {"targets": rows}, draw=lambda s, p: drawn.append((s, p)), argv=argv
    )  # fmt: skip
    captured = capsys.readouterr()
    assert (
        json.loads(captured.out)
        == json.loads((tmp_path / "new" / "r.json").read_text())
        == drawn[0][0]
    )
    assert summary["quick"] and drawn[0][1] == tmp_path / "new" / "r.png"
    assert [row["reached"] for row in rows] == [False, True]
    assert "NOT reached: c: 1.5 times as fast against x (at least 2)" in captured.err
    assert "\nreached: c: 1.5 bytes against x (at most 2)" in captured.err


def test_results_are_named_by_machine_and_date(tmp_path):
    date = all_of_them.datetime.date(2026, 11, 23)

    def file(name, device, quick, unroll):
        form = {"quick": quick, "unroll": unroll}
        return all_of_them.result_file(tmp_path, name, device, date, **form).name

    assert file("peers", "NVIDIA H100 80GB HBM3", False, "numba") == "peers_h100_2026-11-23.json"
    assert file("gpu", "cpu", True, "scan") == "gpu_cpu_2026-11-23_quick.json"
    assert file("streaming", "cpu", False, "scan") == "streaming_cpu_2026-11-23.json"
    assert file("streaming", "cpu", False, "numba") == "streaming_numba_cpu_2026-11-23.json"


def result(
    folder,
    file,
    *,
    quick=False,
    date="2026-01-01",
    device="cpu",
    ratio=0.5,
    system="nnx",
    unroll=None,
    **more,
):
    case = {"name": "B=1 H=64"}
    versions = {"jax": "1.2"}
    machine = {"device": device, "date": date, "cpu": "C", "cpus": 2, "load": [0.1]}
    machine |= {"versions": versions} | more
    row = {"case": case, "form": "per chunk", "system": system, "ratio": ratio}
    best = row | {"system": "haiku", "ratio": 7.25}
    wanted = program.target("B=1 H=64", "times as fast", "nnx", 3.0, ratio)
    missing = {"case": None, "system": TORCH, "missing": "torch", "remedy": "pip"}
    summary = {
        "quick": quick,
        "rows": [row, best, missing],
        "targets": [wanted],
        "environment": machine,
    }
    summary |= {"unroll": unroll} if unroll else {}
    (folder / file).write_text(json.dumps(summary))


def test_the_table_has_every_target_and_every_missing_system(tmp_path):
    result(tmp_path, "peers_cpu_2026-02-02_quick.json", quick=True, date="2026-02-02", ratio=9.0)
    result(tmp_path, "peers_cpu_2026-01-02.json", date="2026-01-02")
    result(tmp_path, "peers_cpu_2026-01-01.json", ratio=8.0)
    result(
        tmp_path, "peers_large_cpu_2026-02-03.json", date="2026-02-03", ratio=0.25, vectors="AVX2"
    )
    result(
        tmp_path, "peers_h100_2026-03-03.json", date="2026-03-03", device="NVIDIA H100", ratio=6.0
    )
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nformer text\n{table.END}\nafter\n")
    for _ in range(2):  # writing it again changes nothing
        # Full before quick, then newest; the long cases have a file of their own.
        files = ["peers_cpu_2026-01-02.json", "peers_large_cpu_2026-02-03.json"]
        assert table.write(readme, tmp_path) == [tmp_path / file for file in files]
        text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "former text" not in text
    assert "| B=1 H=64 | nnx | times as fast | at least 3 | 0.5 | **NOT reached** |" in text
    assert (
        "Smallest ratio 0.5 (B=1 H=64, nnx, per chunk), largest 7.25 (B=1 H=64, haiku, per chunk)."
        in text
    )
    assert (
        "Not compared: PyTorch: torch." in text and "No results yet of: full_vs_truncated" in text
    )
    assert "Smallest ratio 0.25 (B=1 H=64, nnx, per chunk)" in text and " with AVX2, " in text
    assert '`python -m benchmarks.peers --cases "B=64 H=512"`: 2026-02-03' in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="must hold each of these two lines once"):
        table.write(readme, tmp_path)


def test_older_results_show_the_compiled_loops_that_they_measured(tmp_path):
    """Without the key `unroll` and with numba installed, a run measured the compiled loops."""
    versions = {"jax": "1.2", "numba": "0.1"}
    result(
        tmp_path, "peers_cpu_2026-01-02.json", date="2026-01-02", system="tbptt", versions=versions
    )
    result(tmp_path, "memory_plan_cpu_2026-01-02.json", versions=versions)
    result(tmp_path, "memory_plan_cpu_2026-02-02.json", date="2026-02-02", unroll="scan")
    found = {(r.name, r.unroll): r for r in table.results(tmp_path)}
    assert set(found) == {("peers", None), ("memory_plan", "numba"), ("memory_plan", "scan")}
    assert found["peers", None].summary["rows"][0]["system"] == "tbptt numba"
    text, _ = table.markdown(tmp_path)
    assert "Seconds divided by those of `tbptt numba`, one program" in text
    assert "| unroll: numba |" in text and "| unroll: scan |" in text


def test_the_committed_tables_are_those_of_the_results_files(tmp_path):
    """`python -m benchmarks.table` would change nothing; and a changed result changes the table."""
    shutil.copytree(table.RESULTS, tmp_path / "results")
    committed = table.README.read_text()
    (tmp_path / "README.md").write_text(committed)
    files = table.write(tmp_path / "README.md", tmp_path / "results")
    assert (tmp_path / "README.md").read_text() == committed, "run python -m benchmarks.table"
    path = next(path for path in files if path.name.startswith("memory_plan"))
    summary = json.loads(path.read_text())
    summary["targets"][0] |= {"measured": 0.123, "reached": False}
    path.write_text(json.dumps(summary))
    table.write(tmp_path / "README.md", tmp_path / "results")
    changed = (tmp_path / "README.md").read_text()
    assert changed != committed and "| 0.123 | **NOT reached** |" in changed
