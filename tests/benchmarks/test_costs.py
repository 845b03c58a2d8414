"""Benchmarks of memory, files and precision on small sizes; wrong gradients are detected."""

import json

import jax
import jax.numpy as jnp
import pytest

import tbptt
from benchmarks import memory_plan, precision, streaming
from experiments.support.common.environment import environment
from tests.support.benchmark_rows import KEYS, keep_what_is_traced  # noqa: F401


@pytest.mark.exhaustive
def test_memory_plans_report_their_choice(monkeypatch):
    rows, notes = memory_plan.measure_size(12, 2, 3, 4, repeats=1)
    assert [row["system"] for row in rows] == [
        "textbook scan",
        "tbptt unroll",
        "tbptt CarriesOnly()",
        "tbptt Segments()",
    ]
    assert len(notes) == 1 and "tbptt MemoryBudget is left out: MemoryBudget.bytes=" in notes[0]
    assert (
        all(row.keys() >= KEYS for row in rows)
        and rows[0]["ratio"] == 1
        and rows[0]["predicted_bytes"] is None
    )
    assert [row["measured"] is None for row in memory_plan.targets(rows, rows)] == [
        False,
        False,
        True,
        True,
    ]
    monkeypatch.setattr(memory_plan, "SHARE", 0.5)
    rows, notes = memory_plan.measure_size(64, 2, 3, 4, repeats=1)
    assert notes == [] and rows[-1]["system"] == "tbptt MemoryBudget" and "(" in rows[-1]["plan"]
    assert 0 < rows[-1]["predicted_bytes"] <= 0.5 * rows[0]["temp_bytes"]
    assert all(row["measured"] is not None for row in memory_plan.targets(rows, rows))


@pytest.mark.exhaustive
def test_a_plan_with_a_wrong_gradient_is_not_timed(monkeypatch):
    right = memory_plan.problem.textbook_gradient

    def wrong(*args):
        loss, grads = right(*args)
        return loss, jax.tree.map(lambda g: 1.01 * g, grads)

    monkeypatch.setattr(memory_plan.problem, "textbook_gradient", wrong)
    with pytest.raises(ValueError, match="tbptt unroll: the gradient differs by 9.9e-03"):
        memory_plan.measure_size(12, 2, 3, 4, repeats=1)


@pytest.mark.exhaustive
def test_streaming_trains_the_same_parameters_from_every_source(monkeypatch, tmp_path):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    sizes = streaming.Sizes(64, 2, 4, 3)
    rows = streaming.speed(tmp_path, sizes, (".npy", ".parquet"), repeats=2)
    assert [r["system"] for r in rows] == [
        "from memory",
        ".npy read ahead",
        ".parquet read ahead",
        ".npy not read ahead",
    ]
    assert rows[0]["ratio"] == 1 and all(
        r["steps_per_second"] == 64 / r["seconds"] and r["updates"] == 8 for r in rows
    )
    short = streaming.peak(tmp_path, sizes, ".npy", 9)
    assert (
        short["peak_bytes"] > 2**26
        and short["file_bytes"] == 128 + 64 * 16
        and 0 < short["loss"] < 10
    )
    long = short | {
        "case": sizes._replace(steps=640)._asdict(),
        "peak_bytes": 2 * short["peak_bytes"],
    }
    loaded = long | {"system": ".npy loaded whole"}
    made = streaming.targets(rows, [long, short, loaded, loaded])
    assert [(row["wanted"], row["bound"]) for row in made] == [(0.95, "at least")] * 2 + [
        (1.1, "at most")
    ]
    assert (
        made[0]["measured"] == rows[1]["ratio"]
        and made[2]["measured"] == 2
        and not made[2]["reached"]
    )
    summary = {
        "quick": True,
        "rows": rows,
        "memory": [short, long, loaded],
        "environment": environment(),
    }
    streaming.draw(json.loads(json.dumps(summary)), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    open_stream = streaming.stream_problem.open_stream
    monkeypatch.setattr(
        streaming.stream_problem,
        "open_stream",
        lambda path, sizes: shifted(open_stream(path, sizes), path),
    )
    with pytest.raises(ValueError, match=".parquet read ahead: the trained parameters differ"):
        streaming.speed(tmp_path, sizes, (".npy", ".parquet"), repeats=1)


def shifted(stream, path):
    """Shift the chunks of a .parquet file by one."""
    chunk = stream.chunk
    stream.chunk = (lambda i: chunk(i + 1)) if path.suffix == ".parquet" else chunk
    return stream


def test_the_error_is_relative_and_has_a_cosine():
    got, exact = {"a": jnp.array([3.0, 0.0])}, {"a": jnp.array([3.0, 4.0])}
    assert precision.error(got, exact) == pytest.approx((0.8, 0.6))


@pytest.mark.exhaustive
def test_the_precision_benchmark_measures_known_errors(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "CELLS", {"LSTM": tbptt.LSTM, "Elman": tbptt.Elman})
    systems = {
        "tbptt float32": precision.SYSTEMS["tbptt float32"],
        "tbptt bfloat16": precision.SYSTEMS["tbptt bfloat16"],
        "exact": precision.REFERENCE,
        "unsupported": ({"no_such_field": 1}, jnp.float32),
    }
    reported = []
    rows, notes = precision.curves((6,), systems, reported.append)
    errors = {(row["case"]["cell"], row["system"]): row["relative_error"] for row in rows}
    for cell in precision.CELLS:
        assert errors[cell, "exact"] < 1e-13 and 1e-9 < errors[cell, "tbptt float32"] < 1e-5
        assert 1e-4 < errors[cell, "tbptt bfloat16"] < 0.1
    assert notes == [
        f"{cell} has no ['no_such_field']: unsupported is left out" for cell in precision.CELLS
    ]
    assert all(0.99 < row["cosine"] <= 1 + 1e-12 for row in rows) and set(notes) <= set(reported)
    machine = environment()
    precision.draw({"quick": True, "rows": rows, "environment": machine}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
