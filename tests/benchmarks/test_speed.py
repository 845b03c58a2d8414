"""Benchmarks of speed on small sizes; programs that compute something else are not timed."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from benchmarks import full_vs_truncated, gpu, windows_in_parallel
from benchmarks.clock import measure
from benchmarks.support import line, loops
from experiments.support.common.environment import environment
from tests.support.benchmark_rows import KEYS, keep_what_is_traced  # noqa: F401


def test_the_clock_waits_for_the_result():
    def slow(x):
        return jax.pure_callback(
            lambda a: (time.sleep(0.05), np.asarray(a))[1], jax.ShapeDtypeStruct((), x.dtype), x
        )

    timing = measure(
        {"slow": (slow, (jnp.zeros(()),)), "fast": (lambda x: x + 1, (jnp.zeros(()),))}, repeats=3
    )
    assert timing["slow"].least >= 0.05 > timing["fast"].seconds
    assert timing["slow"].least <= timing["slow"].seconds <= timing["slow"].most
    assert timing["fast"].compile_seconds > 0


@pytest.mark.exhaustive
def test_the_gpu_cases_run(monkeypatch):
    rows = gpu.measure_case(2, 3, 4, 200, repeats=1)
    assert [row["system"].startswith("tbptt") for row in rows] == [True] * 3
    assert all(row["seconds"] > 0 and row["temp_bytes"] >= 0 for row in rows)


@pytest.mark.exhaustive
def test_loops_are_compared_before_they_are_timed(monkeypatch):
    rows = {
        (row["system"], row["form"]): row
        for row in loops.measure(3, 2, 4, repeats=1, interpret=True)
    }
    assert set(rows) == {
        (s, f)
        for s in ("plain_unroll", "unroll", loops.PALLAS, "cuDNN")
        for f in ("forward", "gradient")
    }
    for (system, _), row in rows.items():
        if system == "cuDNN":  # not available on a CPU
            assert row["error"] and "seconds" not in row
        else:
            assert row["difference"] < 1e-12 and row["microseconds_per_step"] > 0

    def wrong(*args, interpret):
        carry, ys = tbptt.plain_unroll(*args)
        return carry, 1.05 * ys

    monkeypatch.setattr(loops.pallas_gpu, "unroll", wrong)
    rows = {
        (row["system"], row["form"]): row
        for row in loops.measure(3, 2, 4, repeats=1, interpret=True)
    }
    for form in ("forward", "gradient"):
        assert "refused" in rows[loops.PALLAS, form] and "seconds" not in rows[loops.PALLAS, form]


@pytest.mark.exhaustive
def test_the_weights_are_converted_to_cudnns_order(monkeypatch):
    """Against the reference implementation of cuDNN's LSTM in JAX."""
    from jax.experimental import rnn

    def reference(x, h, c, weights, lengths, *sizes):
        assert (lengths.dtype, lengths.shape, x.shape[:2]) == (jnp.int32, (2,), (2, 3))
        parts = rnn.unpack_lstm_weights(weights, sizes[0], sizes[1], sizes[2], sizes[4])
        return rnn.lstm_ref(x, h, c, *parts, lengths, *sizes)

    monkeypatch.setattr(rnn, "lstm", reference)
    rows = [row for row in loops.measure(3, 2, 4, repeats=1) if row["system"] == "cuDNN"]
    assert len(rows) == 2 and all(row["difference"] < 1e-12 for row in rows)


@pytest.mark.exhaustive
def test_full_against_truncated(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(full_vs_truncated, "H", 4)
    rows = full_vs_truncated.measure_length(20, ((5, 5), (5, 10)), repeats=1)
    assert [row["system"] for row in rows][1:3] == [
        "tbptt truncated_bptt(5, 5)",
        "tbptt truncated_bptt(5, 10)",
    ]
    assert (
        all(row.keys() >= KEYS and row["steps_per_second"] > 0 for row in rows)
        and rows[0]["ratio"] == 1
    )
    skipped = full_vs_truncated.measure_length(10, ((5, 5),), repeats=1, most_bytes=-1)
    assert all(
        row["ratio"] is None and "GiB" in row["skipped"] and row.keys() >= KEYS for row in skipped
    )
    fitted = {"ratios": [1, 2], "seconds_per_step": [1.0, 2.0], **line.fit([1, 2], [1.0, 2.0])}
    machine = environment() | {"cpu": "a cpu"}
    summary = {"quick": True, "rows": rows + skipped, "line": fitted, "environment": machine}
    full_vs_truncated.draw(json.loads(json.dumps(summary)), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_compile_time_is_compared_with_the_textbook_and_over_lengths():
    def row(T, system, seconds):
        return {"case": {"T": T}, "system": system, "compile_seconds": seconds}

    ours, cut, other = (
        full_vs_truncated.FULL,
        "tbptt truncated_bptt(5, 5)",
        full_vs_truncated.TEXTBOOK,
    )
    rows = [
        row(T, system, s * T)
        for T in (1, 2, 3)
        for system, s in ((ours, 4.0), (cut, 8.0), (other, 2.0))
    ]
    made = [
        (r["case"], r["measured"], r["reached"]) for r in full_vs_truncated.compile_targets(rows)
    ]
    assert made == [("T=2", 2.0, False), (f"{ours}, T=3", 3.0, False), (f"{cut}, T=3", 3.0, False)]


def test_the_line_is_fitted():
    exact = line.fit([1, 2, 4, 8, 16], [5.0, 7.0, 11.0, 19.0, 35.0])
    assert exact["slope"] == pytest.approx(2) and exact["intercept"] == pytest.approx(3)
    assert exact["largest_deviation"] < 1e-12 > exact["largest_deviation_from_two_ends"]
    bent = line.fit([1, 2, 3], [1.0, 4.0, 3.0])  # least squares: 2/3 + x
    assert bent["largest_deviation"] == pytest.approx(0.5)  # 4 against 2 + 2/3
    assert bent["largest_deviation_from_two_ends"] == pytest.approx(1.0)  # 4 against 2


@pytest.mark.exhaustive
def test_the_windows_of_the_line_have_a_full_past(monkeypatch):
    monkeypatch.setattr(line, "RATIOS", (1, 3))
    valid, time_interleaved = [], line.clock.time_interleaved

    def recording(programs, repeats):
        valid.extend(int(p.args[1].n_valid) for name, p in programs.items() if name != "1")
        return time_interleaved(programs, repeats)

    monkeypatch.setattr(line.clock, "time_interleaved", recording)
    got = line.measure(2, 4, B=2, D=3, H=4, repeats=1)
    assert (
        valid == [4] and len(got["seconds_per_step"]) == 2
    )  # all k2 - k1 remembered steps are real
    assert line.targets(got)[0]["wanted"] == 0.2


@pytest.mark.exhaustive
def test_windows_in_parallel_compares_gradients_first(monkeypatch):
    rows = windows_in_parallel.measure_batch(20, 2, 5, 4, repeats=1)
    assert all(row.keys() >= KEYS for row in rows) and rows[0]["gradient_difference"] < 1e-12
    right = windows_in_parallel.sequential

    def wrong(params, carry, batch, k):
        return right(params, carry, batch, 20)  # full BPTT

    monkeypatch.setattr(windows_in_parallel, "sequential", wrong)
    with pytest.raises(ValueError, match="the gradients differ by"):
        windows_in_parallel.measure_batch(20, 2, 5, 4, repeats=1)
