"""Every benchmark runs its code on tiny sizes, says what it must, and ends with one line of JSON."""

import argparse
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from benchmarks import __main__ as all_of_them
from benchmarks import full_vs_truncated, gpu, memory_plan, peers, precision, streaming, table, windows_in_parallel
from benchmarks.clock import measure
from benchmarks.support import line, loops, peer_rows, program
from benchmarks.systems.registry import ON_CORES, OURS, TEXTBOOK, TORCH
from benchmarks.systems.work import Case


@pytest.fixture(autouse=True)
def keep_what_is_traced(monkeypatch):
    """Compile times are not looked at here, and the other tests of this process want their caches."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


KEYS = {"case", "system", "steps_per_second", "ratio", "temp_bytes", "compile_seconds"}


def test_the_clock_waits_for_the_value():
    def slow(x):
        return jax.pure_callback(lambda a: (time.sleep(0.05), np.asarray(a))[1], jax.ShapeDtypeStruct((), x.dtype), x)

    timing = measure({"slow": (slow, (jnp.zeros(()),)), "fast": (lambda x: x + 1, (jnp.zeros(()),))}, repeats=3)
    assert timing["slow"].least >= 0.05 > timing["fast"].seconds
    assert timing["slow"].least <= timing["slow"].seconds <= timing["slow"].most
    assert timing["fast"].compile_seconds > 0


def test_the_gpu_cases_run(monkeypatch):
    rows = gpu.measure_case(2, 3, 4, 200, repeats=1)
    assert [row["system"].startswith("tbptt") for row in rows] == [True] * 3
    assert all(row["seconds"] > 0 and row["temp_bytes"] >= 0 for row in rows)


def test_loops_are_compared_before_they_are_timed(monkeypatch):
    rows = {(row["system"], row["form"]): row for row in loops.measure(3, 2, 4, repeats=1)}
    assert set(rows) == {
        (s, f) for s in ("plain_unroll", "unroll", "fused_unroll", "cuDNN") for f in ("forward", "gradient")
    }
    for (system, _), row in rows.items():
        if system == "cuDNN":  # there is none on a CPU: an answer, not a crash
            assert row["error"] and "seconds" not in row
        else:
            assert row["difference"] < 1e-12 and row["microseconds_per_step"] > 0

    def wrong(*args, **options):
        carry, ys = tbptt.plain_unroll(*args, **options)
        return carry, 1.05 * ys

    monkeypatch.setattr(tbptt, "fused_unroll", wrong)
    rows = {(row["system"], row["form"]): row for row in loops.measure(3, 2, 4, repeats=1)}
    for form in ("forward", "gradient"):
        assert "refused" in rows["fused_unroll", form] and "seconds" not in rows["fused_unroll", form]


def test_cudnn_gets_our_weights_in_its_order(monkeypatch):
    """Against JAX's own statement in plain JAX of what cuDNN computes."""
    from jax.experimental import rnn

    def stated(x, h, c, weights, lengths, *sizes):
        assert (lengths.dtype, lengths.shape, x.shape[:2]) == (jnp.int32, (2,), (2, 3))
        parts = rnn.unpack_lstm_weights(weights, sizes[0], sizes[1], sizes[2], sizes[4])
        return rnn.lstm_ref(x, h, c, *parts, lengths, *sizes)

    monkeypatch.setattr(rnn, "lstm", stated)
    rows = [row for row in loops.measure(3, 2, 4, repeats=1) if row["system"] == "cuDNN"]
    assert len(rows) == 2 and all(row["difference"] < 1e-12 for row in rows)


def test_peers_that_are_stopped_keep_the_cases_before(monkeypatch):
    def measure_case(case, workers, repeats, compiles):
        if case.name == "second":
            raise KeyboardInterrupt
        return [{"case": case._asdict(), "system": "someone", "failed": "never tried"}]

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
    monkeypatch.setattr(peers, "CASES", tuple(Case(name, 4, 3, 1, 2, 5) for name in ("first", "second", "third")))
    flags = argparse.Namespace(cases=None, systems=None, quick=False, repeats=1, compiles=1)
    summary = peers.measure(flags)
    assert [row["case"]["name"] for row in summary["rows"]] == ["first"] and summary["stopped_at"] == "second"
    assert Idle.closed == len(peers.SYSTEMS)


def test_peers_are_stopped_by_the_first_of_two_signals():
    before = signal.signal(signal.SIGTERM, peers.stop_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_peers_from_processes_to_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(peers, "CASES", (Case("B=1 H=64", 4, 3, 1, 2, 5),))
    argv = ["--systems", OURS, "--repeats", "2", "--out", str(tmp_path / "peers.json")]
    summary = program.run("doc", peers.measure, add_flags=peers.add_flags, argv=argv)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and json.loads(out[0]) == json.loads((tmp_path / "peers.json").read_text())
    assert {(row["system"], row["form"]) for row in summary["rows"]} == {
        (system, form) for system in (OURS, TEXTBOOK) for form in ("one program", "per chunk")
    }
    ours = next(row for row in summary["rows"] if row["system"] == OURS and row["form"] == "one program")
    for row in summary["rows"]:
        assert row.keys() >= KEYS and row["loss_difference"] < 1e-5 and row["repeats"] == 2 * peers.MORE
        assert row["ratio"] == pytest.approx(row["seconds"] / ours["seconds"])
        assert row["steps_per_second"] == pytest.approx(12 / row["seconds"])
    reached = {row["against"].split(" as ")[0]: row["measured"] for row in summary["targets"]}
    assert reached[TORCH] is None and reached["the fastest JAX peer"] > 0  # PyTorch was not asked for: not reached
    assert summary["environment"]["load_after"] and not summary["quick"]


def test_a_peer_whose_losses_disagree_is_refused(capsys):
    class Fake:
        def __init__(self, losses):
            self.losses = losses

        def prepare(self, case, compiles):
            known = {"compile_seconds": 1.0, "temp_bytes": 5, "losses": self.losses, "seconds": 0.1}
            return {"per chunk": dict(known), "one program": dict(known)}

        def epoch(self, form, warm):
            assert self.losses[1] < 0.6, "a refused system must not be timed"
            return 0.1 if form == "one program" else 0.3

    class OnCores(Fake):
        def epoch(self, form, warm):
            return 0.05 if form == "one program" else 0.08

    good = [1.0, 0.5]
    workers = {OURS: Fake(good), "nnx": Fake([1.0, 0.9]), TEXTBOOK: Fake(good)}
    rows = peers.measure_case(Case("B=1 H=64", 2, 3, 1, 2, 5), workers, 3, 1)
    assert {row["repeats"] for row in rows if "refused" not in row} == {3 * peers.MORE}  # as all are short
    refused = [row for row in rows if "refused" in row]
    assert {row["system"] for row in refused} == {"nnx"} and len(refused) == 2 and "seconds" not in refused[0]
    targets = peer_rows.targets(rows)
    assert targets[0]["measured"] == pytest.approx(3.0) and TEXTBOOK in targets[0]["against"]
    assert targets[0]["against_any_form"]["ratio"] == pytest.approx(1.0)
    assert not targets[1]["reached"] and targets[1]["measured"] is None
    assert targets[2]["what"] == "times the compile time" and targets[2]["reached"]

    cores = {f"{OURS} {ON_CORES}": OnCores(good), f"{TEXTBOOK} {ON_CORES}": OnCores(good)}
    rows = peers.measure_case(Case("B=1 H=64", 2, 3, 1, 2, 5), workers | cores, 3, 1)
    target = peer_rows.targets(rows)[0]  # ours at its fastest against theirs as documented; and all that is less flattering
    assert target["measured"] == pytest.approx(6.0) and target["ours"] == f"{OURS} {ON_CORES}, one program"
    assert target["on_one_device"] == pytest.approx(3.0) and target["against"].endswith(f"({TEXTBOOK})")
    assert target["against_any_form"] == {
        "system": f"{TEXTBOOK} {ON_CORES}",
        "form": "one program",
        "ratio": pytest.approx(1.0),
    }


def test_full_against_truncated(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(full_vs_truncated, "H", 4)
    rows = full_vs_truncated.measure_length(20, ((5, 5), (5, 10)), repeats=1)
    assert [row["system"] for row in rows][1:3] == ["tbptt truncated_bptt(5, 5)", "tbptt truncated_bptt(5, 10)"]
    assert all(row.keys() >= KEYS and row["steps_per_second"] > 0 for row in rows) and rows[0]["ratio"] == 1
    skipped = full_vs_truncated.measure_length(10, ((5, 5),), repeats=1, most_bytes=-1)
    assert all(row["ratio"] is None and "GiB" in row["skipped"] and row.keys() >= KEYS for row in skipped)
    fitted = {"ratios": [1, 2], "seconds_per_step": [1.0, 2.0], **line.fit([1, 2], [1.0, 2.0])}
    machine = program.environment() | {"cpu": "a cpu"}
    summary = {"quick": True, "rows": rows + skipped, "line": fitted, "environment": machine}
    full_vs_truncated.draw(json.loads(json.dumps(summary)), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_compile_time_is_compared_with_the_textbook_and_over_lengths():
    def row(T, system, seconds):
        return {"case": {"T": T}, "system": system, "compile_seconds": seconds}

    ours, cut, other = full_vs_truncated.FULL, "tbptt truncated_bptt(5, 5)", full_vs_truncated.TEXTBOOK
    rows = [row(T, system, s * T) for T in (1, 2, 3) for system, s in ((ours, 4.0), (cut, 8.0), (other, 2.0))]
    made = [(r["case"], r["measured"], r["reached"]) for r in full_vs_truncated.compile_targets(rows)]
    assert made == [("T=2", 2.0, False), (f"{ours}, T=3", 3.0, False), (f"{cut}, T=3", 3.0, False)]


def test_the_line_is_fitted_and_its_past_is_full(monkeypatch):
    exact = line.fit([1, 2, 4, 8, 16], [5.0, 7.0, 11.0, 19.0, 35.0])
    assert exact["slope"] == pytest.approx(2) and exact["intercept"] == pytest.approx(3)
    assert exact["largest_deviation"] < 1e-12 > exact["largest_deviation_from_two_ends"]
    bent = line.fit([1, 2, 3], [1.0, 4.0, 3.0])  # least squares: 2/3 + x
    assert bent["largest_deviation"] == pytest.approx(0.5)  # 4 against 2 + 2/3
    assert bent["largest_deviation_from_two_ends"] == pytest.approx(1.0)  # 4 against 2
    monkeypatch.setattr(line, "RATIOS", (1, 3))
    ages, race = [], line.clock.race

    def watching(programs, repeats):
        ages.extend(int(p.args[1].age) for name, p in programs.items() if name != "1")
        return race(programs, repeats)

    monkeypatch.setattr(line.clock, "race", watching)
    got = line.measure(2, 4, B=2, D=3, H=4, repeats=1)
    assert ages == [4] and len(got["seconds_per_step"]) == 2  # k2 - k1 steps are remembered, all of them real
    assert line.targets(got)[0]["wanted"] == 0.2


def test_windows_in_parallel_compares_gradients_first(monkeypatch):
    rows = windows_in_parallel.measure_batch(20, 2, 5, 4, repeats=1)
    assert all(row.keys() >= KEYS for row in rows) and rows[0]["gradient_difference"] < 1e-12
    right = windows_in_parallel.sequential

    def wrong(params, carry, batch, k):
        return right(params, carry, batch, 20)  # full BPTT

    monkeypatch.setattr(windows_in_parallel, "sequential", wrong)
    with pytest.raises(ValueError, match="the gradients differ by"):
        windows_in_parallel.measure_batch(20, 2, 5, 4, repeats=1)


def test_memory_plans_say_what_they_chose(monkeypatch):
    rows, notes = memory_plan.measure_size(12, 2, 3, 4, repeats=1)
    assert [row["system"] for row in rows] == ["textbook scan", "tbptt unroll", "tbptt CarriesOnly()", "tbptt Segments()"]
    assert len(notes) == 1 and "tbptt MemoryBudget is left out: MemoryBudget.bytes=" in notes[0]  # 5 % of nearly nothing
    assert all(row.keys() >= KEYS for row in rows) and rows[0]["ratio"] == 1 and rows[0]["predicted_bytes"] is None
    assert [row["measured"] is None for row in memory_plan.targets(rows, rows)] == [False, False, True, True]
    monkeypatch.setattr(memory_plan, "SHARE", 0.5)
    rows, notes = memory_plan.measure_size(64, 2, 3, 4, repeats=1)
    assert notes == [] and rows[-1]["system"] == "tbptt MemoryBudget" and "(" in rows[-1]["plan"]
    assert 0 < rows[-1]["predicted_bytes"] <= 0.5 * rows[0]["temp_bytes"]
    assert all(row["measured"] is not None for row in memory_plan.targets(rows, rows))


def test_a_plan_with_a_wrong_gradient_is_not_timed(monkeypatch):
    right = memory_plan.problem.textbook_gradient
    wrong = lambda *args: (lambda loss, grads: (loss, jax.tree.map(lambda g: 1.01 * g, grads)))(*right(*args))  # noqa: E731
    monkeypatch.setattr(memory_plan.problem, "textbook_gradient", wrong)
    with pytest.raises(ValueError, match="tbptt unroll: the gradient differs by 9.9e-03"):
        memory_plan.measure_size(12, 2, 3, 4, repeats=1)


def test_streaming_trains_the_same_from_every_place(monkeypatch, tmp_path):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    sizes = streaming.Sizes(64, 2, 4, 3)
    rows = streaming.speed(tmp_path, sizes, (".npy", ".parquet"), repeats=2)
    assert [r["system"] for r in rows] == ["from memory", ".npy read ahead", ".parquet read ahead", ".npy not read ahead"]
    assert rows[0]["ratio"] == 1 and all(r["steps_per_second"] == 64 / r["seconds"] and r["updates"] == 8 for r in rows)
    short = streaming.peak(tmp_path, sizes, ".npy", 9)
    assert short["peak_bytes"] > 2**26 and short["file_bytes"] == 128 + 64 * 16 and 0 < short["loss"] < 10
    long = short | {"case": sizes._replace(steps=640)._asdict(), "peak_bytes": 2 * short["peak_bytes"]}
    loaded = long | {"system": ".npy loaded whole"}
    made = streaming.targets(rows, [long, short, loaded, loaded])
    assert [(row["wanted"], row["bound"]) for row in made] == [(0.95, "at least")] * 2 + [(1.1, "at most")]
    assert made[0]["measured"] == rows[1]["ratio"] and made[2]["measured"] == 2 and not made[2]["reached"]
    summary = {"quick": True, "rows": rows, "memory": [short, long, loaded], "environment": program.environment()}
    streaming.draw(json.loads(json.dumps(summary)), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    open_stream = streaming.stream_problem.open_stream
    monkeypatch.setattr(
        streaming.stream_problem, "open_stream", lambda path, sizes: shifted(open_stream(path, sizes), path)
    )
    with pytest.raises(ValueError, match=".parquet read ahead: what was trained differs"):
        streaming.speed(tmp_path, sizes, (".npy", ".parquet"), repeats=1)


def shifted(stream, path):
    """The chunks of a .parquet file one too far on."""
    chunk = stream.chunk
    stream.chunk = (lambda i: chunk(i + 1)) if path.suffix == ".parquet" else chunk
    return stream


def test_precision_knows_its_own_error(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "CELLS", {"LSTM": tbptt.LSTM, "Elman": tbptt.Elman})
    systems = {
        "tbptt float32": precision.SYSTEMS["tbptt float32"],
        "tbptt bfloat16": precision.SYSTEMS["tbptt bfloat16"],
        "exact": precision.REFERENCE,
        "coming": ({"no_such_field": 1}, jnp.float32),
    }
    said = []
    rows, notes = precision.curves((6,), systems, said.append)
    errors = {(row["case"]["cell"], row["system"]): row["relative_error"] for row in rows}
    for cell in precision.CELLS:
        assert errors[cell, "exact"] < 1e-13 and 1e-9 < errors[cell, "tbptt float32"] < 1e-5
        assert 1e-4 < errors[cell, "tbptt bfloat16"] < 0.1
    assert notes == [f"{cell} has no ['no_such_field']: coming is left out" for cell in precision.CELLS]
    assert all(0.99 < row["cosine"] <= 1 + 1e-12 for row in rows) and set(notes) <= set(said)
    got, exact = {"a": jnp.array([3.0, 0.0])}, {"a": jnp.array([3.0, 4.0])}
    assert precision.error(got, exact) == pytest.approx((0.8, 0.6))
    machine = program.environment()
    precision.draw({"quick": True, "rows": rows, "environment": machine}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


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
