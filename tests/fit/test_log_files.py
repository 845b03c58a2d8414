"""Tests of metrics.jsonl and TensorBoard files."""

import json
import os
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tbptt import Metrics
from tbptt.fit import metrics_file
from tbptt.fit.log import RunLog
from tbptt.fit.metrics_file import MetricsFile, read_rows, remove_after
from tests.support.logged_updates import LOSSES, NORMS, N, metrics, one, silent


def timeless(rows: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "time_steps_per_second")}
        for row in rows
    ]


def test_lines_contain_the_means_of_their_updates(tmp_path):
    with RunLog(tmp_path, total=N, every=50, console=silent()) as log:
        log.update(metrics(0, 70, bad=3))
        for i in range(70, N):
            log.update(one(i))
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [(row["step"], row["updates"]) for row in rows] == [(50, 50), (100, 50), (130, 30)]
    for row, (start, stop) in zip(rows, ((0, 50), (50, 100), (100, 130)), strict=True):
        keep = np.array([i for i in range(start, stop) if i != 3])
        assert row["loss"] == pytest.approx(LOSSES[keep].mean(dtype=np.float64), rel=1e-12)
        assert row["grad_norm"] == pytest.approx(NORMS[keep].mean(dtype=np.float64), rel=1e-12)
        assert row["grad_norm_max"] == NORMS[keep].max()
        assert row["clipped"] == pytest.approx((NORMS[keep] > 1).sum() / (stop - start), rel=1e-12)
        assert row["non_finite"] == (start == 0)


def test_an_epoch_and_its_single_updates_write_the_same_file(tmp_path):
    for name, parts in (("epoch", [metrics(0, N)]), ("single", [one(i) for i in range(N)])):
        (tmp_path / name).mkdir()
        with RunLog(tmp_path / name, every=40, console=silent()) as log:
            for part in parts:
                log.update(part, lr=0.5)
    rows = [timeless(read_rows(tmp_path / name / "metrics.jsonl")) for name in ("epoch", "single")]
    assert rows[0] == rows[1] and rows[0][0]["lr"] == 0.5


def test_no_step_occurs_twice_after_a_kill_and_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RunLog(tmp_path, every=20, console=silent()) as log:
        log.update(metrics(0, 70))
        log.flush()  # the checkpoint is at 70
        log.valid(mse=0.25)
        log.update(metrics(70, 110))
    before = read_rows(path)
    with path.open("a") as file:
        file.write('{"kind": "train", "step": 12')  # killed while writing
    with RunLog(tmp_path, every=20, start=70, console=silent()) as log:
        assert log.seconds >= before[4]["seconds"] > 0
        log.update(metrics(70, N))
    rows = read_rows(path)
    assert rows[:5] == before[:5] and rows[5] == {"kind": "resumed", "step": 70, "removed": 3}
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == [20, 40, 60, 70, 80, 100, 120, 130] and before[-1]["step"] == 110
    assert sum(row["updates"] for row in rows if row["kind"] == "train") == N
    assert not list(tmp_path.glob("*.new"))


def test_a_kill_while_lines_are_removed_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_after(path, 1)
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    monkeypatch.undo()
    assert remove_after(path, 1) == ([{"step": 1}], 1) and read_rows(path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 .*delete that line"):
        RunLog(tmp_path, console=silent())


def test_a_full_disk_is_reported_once_and_rows_are_written_later(tmp_path, monkeypatch):
    path, errors, space = tmp_path / "m", [], [0]
    real = os.write

    def write(file: int, data: bytes) -> int:
        if space[0] <= 0:
            raise OSError(28, "No space left on device")
        written = real(file, data[: space[0]])
        space[0] -= written
        return written

    monkeypatch.setattr(metrics_file.os, "write", write)
    file = MetricsFile(path, errors.append)
    with pytest.raises(ValueError, match="JSON"):
        file.append({"step": float("nan")})
    space[0] = 20  # one row and a half
    for step in range(3):
        file.append({"step": step})
        assert [row["step"] for row in read_rows(path)] == [0] and path.read_bytes().endswith(b"\n")
    assert [error.errno for error in errors] == [28]
    space[0] = 1000
    file.append({"step": 3})
    assert file.close() == 0 and [row["step"] for row in read_rows(path)] == [0, 1, 2, 3]


def test_updates_fetched_together_divide_their_time_equally(tmp_path, monkeypatch):
    """70 updates in 35 s, fetched at once, give two lines with the rate 2.

    The time of scoring does not count.
    """
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with RunLog(
        tmp_path, every=50, time_steps_per_update=3, line_seconds=1e9, console=silent()
    ) as log:
        now[0] = 35.0
        log.update(metrics(0, 70))
        log.flush()
        now[0] = 1000.0  # a score is computed
        log.valid(mse=0.5)
        now[0] = 1012.0  # 60 updates in 12 s
        log.update(metrics(70, N))
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [(row["updates"], row["time_steps_per_second"]) for row in rows] == [
        (50, pytest.approx(6)), (20, pytest.approx(6)),
        (30, pytest.approx(15)), (30, pytest.approx(15)),
    ]  # fmt: skip


def events(folder) -> list:
    """Parse event files: length, checksum, a protocol buffer, checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    return found


def test_event_files_contain_the_numbers_of_the_lines(tmp_path):
    with RunLog(tmp_path, every=50, tensorboard=True, console=silent()) as log:
        log.update(metrics(0, 100))
        log.valid(mse=0.5)
    rows = read_rows(tmp_path / "metrics.jsonl")
    written = {
        (v.tag, e.step): v.simple_value
        for e in events(tmp_path / "tensorboard")
        for v in e.summary.value
    }
    assert written["train/loss", 50] == pytest.approx(rows[0]["loss"], rel=1e-6)
    assert written["train/grad_norm", 100] == pytest.approx(rows[1]["grad_norm"], rel=1e-6)
    assert written["valid/mse", 100] == 0.5
    with RunLog(tmp_path, start=50, tensorboard=True, console=silent()):
        pass
    # START hides the later steps.
    assert any(e.session_log.status == 1 and e.step == 51 for e in events(tmp_path / "tensorboard"))


def test_the_error_without_tensorboardX_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        RunLog(tmp_path, tensorboard=True, console=silent())


def test_non_finite_numbers_are_null_in_the_file(tmp_path):
    with RunLog(tmp_path, console=silent()) as log:
        log.update(Metrics(jnp.float32(jnp.nan), jnp.float32(jnp.inf), None, jnp.bool_(True), None))
        log.valid(mse=float("nan"))
    text = (tmp_path / "metrics.jsonl").read_text()
    rows = [
        json.loads(line, parse_constant=lambda word: pytest.fail(word))
        for line in text.splitlines()
    ]
    assert [row["kind"] for row in rows] == ["warning", "train", "valid"]
    assert rows[1]["loss"] is None and rows[1]["non_finite"] == 1 and rows[2]["mse"] is None
