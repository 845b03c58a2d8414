"""What a run says of itself: lines that add up, no step twice, a watch that speaks once and only if it should."""

import io
import json
import os
import pty
import select
import struct
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import tbptt
from experiments.support import health, metrics_file
from experiments.support.metrics_file import MetricsFile, cut_after, read_rows
from experiments.support.progress_view import LiveView, Pace, PlainView, Status, describe, duration, make_view
from experiments.support.run_log import RunLog
from tbptt import Metrics

RNG = np.random.default_rng(7)
N = 130
LOSSES = np.exp(RNG.normal(size=N)).astype(np.float32)
NORMS = np.exp(RNG.normal(size=N)).astype(np.float32)


def metrics(start: int, stop: int, bad: int | None = None) -> Metrics:
    """Updates [start, stop) as an epoch gives them; one of them not finite."""
    losses, norms = LOSSES.copy(), NORMS.copy()
    if bad is not None:
        losses[bad] = norms[bad] = np.nan
    here = slice(start, stop)
    finite = np.isfinite(losses[here])
    return Metrics(*(jnp.asarray(x) for x in (losses[here], norms[here], norms[here] > 1, ~finite)), info=None)


def one(index: int) -> Metrics:
    return jax.tree.map(lambda leaf: leaf[0], metrics(index, index + 1))


def silent() -> Console:
    return Console(file=io.StringIO(), width=120)


def said(console: Console) -> str:
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def timeless(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "steps_per_second")} for row in rows]


def test_lines_hold_the_means_of_the_updates_they_cover(tmp_path):
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


def test_an_epoch_and_its_single_updates_make_the_same_file(tmp_path):
    for name, pieces in (("epoch", [metrics(0, N)]), ("single", [one(i) for i in range(N)])):
        (tmp_path / name).mkdir()
        with RunLog(tmp_path / name, every=40, console=silent()) as log:
            for piece in pieces:
                log.update(piece, lr=0.5)
    rows = [timeless(read_rows(tmp_path / name / "metrics.jsonl")) for name in ("epoch", "single")]
    assert rows[0] == rows[1] and rows[0][0]["lr"] == 0.5


def test_no_step_stands_twice_after_a_kill_and_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RunLog(tmp_path, every=20, console=silent()) as log:
        log.update(metrics(0, 70))
        log.flush()  # the checkpoint stands at 70
        log.valid(mse=0.25)
        log.update(metrics(70, 110))
    before = read_rows(path)
    with path.open("a") as file:
        file.write('{"kind": "train", "step": 12')  # killed while writing
    with RunLog(tmp_path, every=20, start=70, console=silent()) as log:
        assert log.seconds >= before[4]["seconds"] > 0
        log.update(metrics(70, N))
    rows = read_rows(path)
    assert rows[:5] == before[:5] and rows[5] == {"kind": "resumed", "step": 70, "cut": 3}
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == [20, 40, 60, 70, 80, 100, 120, 130] and before[-1]["step"] == 110
    assert sum(row["updates"] for row in rows if row["kind"] == "train") == N
    assert not list(tmp_path.glob("*.new"))


def test_a_kill_while_lines_are_taken_out_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cut_after(path, 1)
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    monkeypatch.undo()
    assert cut_after(path, 1) == ([{"step": 1}], 1) and read_rows(path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 .*delete that line"):
        RunLog(tmp_path, console=silent())


def test_a_full_disk_is_said_once_and_outlived(tmp_path, monkeypatch):
    path, troubles, room = tmp_path / "m", [], [0]
    real = os.write

    def write(file: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        taken = real(file, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(metrics_file.os, "write", write)
    file = MetricsFile(path, troubles.append)
    with pytest.raises(ValueError, match="JSON"):
        file.append({"step": float("nan")})
    room[0] = 20  # one row and a half
    for step in range(3):
        file.append({"step": step})
        assert [row["step"] for row in read_rows(path)] == [0] and path.read_bytes().endswith(b"\n")
    assert [error.errno for error in troubles] == [28]
    room[0] = 1000
    file.append({"step": 3})
    assert file.close() == 0 and [row["step"] for row in read_rows(path)] == [0, 1, 2, 3]


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(size=n))


def series(losses, norms) -> list[tuple[float, float, bool]]:
    return [(float(a), float(b), not np.isfinite(a + b)) for a, b in np.broadcast(losses, norms)]


T = 600
RAMP = np.clip((np.arange(T) - 300) / 60, 0, 1)
HEALTHY = {
    "noisy": series(noise(T), noise(T, 1)),
    "a plateau, then learning": series(0.1**RAMP, 0.02 ** (1 - RAMP) * noise(T)),
    "solved, without noise": series(0.97 ** np.arange(T), 0.97 ** (np.arange(T) / 2)),
    "solved in one leap": series(np.where(np.arange(T) < 300, 1.0, 1e-9), np.where(np.arange(T) < 300, 1.0, 1e-5)),
    "spikes that clipping takes": series(1.0, np.where(np.arange(T) % 50 == 49, 60.0, 1.0)),
    "chunks without a loss": series(np.where(np.arange(T) % 90 < 10, 0.0, 1.0), np.where(np.arange(T) % 90 < 10, 0.0, 1.0)),
    "a stray zero": series(1.0, np.where(np.arange(T) % 100 == 50, 0.0, 1.0)),
}
SICK = {
    "one leap": (series(1.0, np.where(np.arange(T) == 400, 1000.0, 1.0)), [(400, "exploded")]),
    "one leap in noise": (series(noise(T), np.where(np.arange(T) == 400, 1000.0, noise(T, 1))), [(400, "exploded")]),
    "a blow-up": (series(1.0, np.where(np.arange(T) > 100, 1.2 ** (np.arange(T) - 100.0), 1.0)[:400]), [(126, "exploded")]),
    "slow growth": (series(1.0, 1.02 ** np.arange(T)), [(475, "exploded")]),
    "never in range": (series(1.0, np.full(T, 1e25)), [(0, "exploded")]),
    "vanished": (series(np.sqrt(noise(T)), np.where(np.arange(T) < 300, 1.0, 1e-5) * noise(T, 1)), [(304, "vanished")]),
    "slowly to rounding": (series(1.0, 0.95 ** np.arange(T)), [(325, "vanished")]),
    "dead from the start": (series(2.3, np.zeros(T)), [(4, "vanished")]),
    "NaN, for ever": (series(1.0, np.where(np.arange(T) < 200, 1.0, np.nan)), [(200, "non_finite")]),
    "twice": (
        series(1.0, np.where((np.arange(T) == 200) | (np.arange(T) == 400), np.inf, 1.0)),
        [(200, "non_finite"), (400, "non_finite")],
    ),
    "exploded, then NaN": (
        series(np.where(np.arange(T) > 205, np.nan, 1.0), np.where(np.arange(T) >= 200, 1e4, 1.0)),
        [(200, "exploded"), (206, "non_finite")],
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_training_is_silent(name):
    assert health.findings(HEALTHY[name]) == []


@pytest.mark.parametrize("name", SICK)
def test_each_episode_is_told_once_at_its_first_moment(name):
    updates, expected = SICK[name]
    assert [(index, finding.kind) for index, finding in health.findings(updates)] == expected


def test_what_to_try_has_the_numbers_of_this_run():
    text = health.advice("exploded", {"lr": 3e-3, "clip": 1.0, "k2": 100, "cell": "elman"})
    assert "now 0.003, try 0.001)" in text and "now 1, try 0.25" in text and "now 100, try 50" in text and "lstm" in text
    assert "set --clip" in health.advice("exploded", {"clip": None, "cell": "lstm"})
    assert "now 50, try 100" in health.advice("vanished", {"k2": 50}) and "NaN" in health.advice("non_finite", {})


def test_a_warning_reaches_people_and_the_file_once(tmp_path):
    console = silent()
    with RunLog(tmp_path, every=25, settings={"lr": 0.3}, console=console) as log:
        log.update(metrics(0, 60))
        log.update(Metrics(jnp.float32(1), jnp.float32(1e6), None, jnp.bool_(False), None))
        log.update(metrics(61, N))
    assert said(console).count("warning, update 61: the gradient norm is 1e+06") == 1 and "try 0.1" in said(console)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["what"]) for row in rows if row["kind"] == "warning"] == [(61, "exploded")]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    with RunLog(tmp_path, start=N, settings={}, console=console) as log:  # what is usual is known from the lines
        log.update(Metrics(jnp.float32(1), jnp.float32(1e6), None, jnp.bool_(False), None))
    assert "warning, update 131" not in said(console)  # four lines are too few to know


def training(cell, lr: float, clip: float, key, updates: int = 240) -> list[tuple[float, float, bool]]:
    values = tbptt.data.mackey_glass(updates * 25 + 1, seed=0).values
    scaled, _ = tbptt.data.standardise(values, len(values))
    batch = tbptt.Batch(jnp.asarray(scaled[:-1, None]), jnp.asarray(scaled[1:, None]))
    readout = nn.Dense(1)
    estimator = tbptt.truncated_bptt(tbptt.sequence_loss(cell, readout, tbptt.squared_error), 25, 25)
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(lr))
    params = tbptt.init_params(key, cell, readout)
    state = tbptt.init_state(estimator, optimizer, params, cell.initial_carry((1,)), batch)
    _, seen = tbptt.make_train_epoch(estimator, optimizer, 25)(state, batch)
    return list(zip(*(np.asarray(x).tolist() for x in (seen.loss, seen.grad_norm, seen.non_finite)), strict=True))


def test_real_training_is_silent_if_it_goes_well_and_warned_of_if_not(key):
    assert health.findings(training(tbptt.GRU(1, 8), 0.05, 1.0, key)) == []
    found = health.findings(training(tbptt.DiagonalLinear(1, 8), 300.0, 1e30, key))
    assert found and found[0][1].kind in ("exploded", "non_finite")


def test_a_pipe_and_a_dull_terminal_get_lines_a_terminal_a_bar():
    assert isinstance(make_view(silent(), 1.0), PlainView)
    master, slave = pty.openpty()
    with open(slave, "w") as terminal:
        dull = Console(file=terminal, _environ={"TERM": "dumb"})
        assert isinstance(make_view(dull, 1.0), PlainView)
        for environment, colours in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
            console = Console(file=terminal, width=100, _environ=environment)
            view = make_view(console, 1.0)
            assert isinstance(view, LiveView)
            view.show(Status(3, 10, 0.3, loss=0.25))
            view.end(Status(3, 10, 0.3, loss=0.25))
            terminal.flush()
            seen = ""
            while "update 3/10  loss 0.25" not in seen and select.select([master], [], [], 20.0)[0]:
                seen += os.read(master, 1 << 16).decode()
            assert "update 3/10  loss 0.25" in seen and ("\x1b[3" in seen) == colours
    os.close(master)


def test_lines_written_together_share_the_time_that_they_took_together(tmp_path, monkeypatch):
    """70 updates in 35 s, fetched at once: both lines that they end have the rate 2; scoring is nobody's time."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with RunLog(tmp_path, every=50, steps_per_update=3, calm=1e9, console=silent()) as log:
        now[0] = 35.0
        log.update(metrics(0, 70))
        log.flush()
        now[0] = 1000.0  # a score is computed
        log.valid(mse=0.5)
        now[0] = 1012.0  # 60 updates in 12 s
        log.update(metrics(70, N))
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [(row["updates"], row["steps_per_second"]) for row in rows] == [
        (50, pytest.approx(6)), (20, pytest.approx(6)), (30, pytest.approx(15)), (30, pytest.approx(15))
    ]  # fmt: skip


def test_plain_lines_come_at_a_calm_rate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    console = silent()
    view = PlainView(console, 10.0)
    for step in range(1, 121):  # 30 seconds
        now[0] += 0.25
        view.show(Status(step))
    view.end(Status(120))
    assert [int(line.split()[1]) for line in said(console).splitlines()] == [4, 44, 84, 120]
    assert "\x1b" not in said(console)


def test_the_time_left_is_that_of_what_ends_first(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    both, free = Pace(1000, 40.0), Pace(None, None)
    assert both.rate() is None and both.left(0, 0.0) == 40.0
    for second in range(1, 6):
        now[0] = float(second)
        both.mark(100 + 10 * second)
        free.mark(second)
    assert both.rate() == pytest.approx(10) and both.left(150, 5.0) == 35.0 and both.left(900, 5.0) == pytest.approx(10)
    assert both.share(150, 5.0) == 0.15 and both.share(150, 30.0) == 0.75
    assert free.rate() == pytest.approx(1) and free.left(5, 5.0) is None and free.share(5, 5.0) is None
    status = Status(1200, 5000, 0.24, 0.12345, 0.5, 0.123, 8201.0, "steps", 4000.0, "mse 0.2")
    line = "update 1,200/5,000  loss 0.1235  |g| 0.5  clipped 12 %  8,201 steps/s  1 h 6 min left  mse 0.2"
    assert describe(status) == line
    assert [duration(s) for s in (0.4, 59.6, 61, 7200, 90000)] == ["0 s", "1 min", "1 min 1 s", "2 h", "1 d 1 h"]


def events(folder) -> list:
    """Reads event files as their format says: length, checksum, a protocol buffer, checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    return found


def test_event_files_hold_the_numbers_of_the_lines(tmp_path):
    with RunLog(tmp_path, every=50, tensorboard=True, console=silent()) as log:
        log.update(metrics(0, 100))
        log.valid(mse=0.5)
    rows = read_rows(tmp_path / "metrics.jsonl")
    written = {(v.tag, e.step): v.simple_value for e in events(tmp_path / "tensorboard") for v in e.summary.value}
    assert written["train/loss", 50] == pytest.approx(rows[0]["loss"], rel=1e-6)
    assert written["train/grad_norm", 100] == pytest.approx(rows[1]["grad_norm"], rel=1e-6)
    assert written["valid/mse", 100] == 0.5
    with RunLog(tmp_path, start=50, tensorboard=True, console=silent()):
        pass
    assert any(e.session_log.status == 1 and e.step == 51 for e in events(tmp_path / "tensorboard"))  # START: hide the rest


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'tbptt\[tensorboard\]'"):
        RunLog(tmp_path, tensorboard=True, console=silent())


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path):
    with RunLog(tmp_path, console=silent()) as log:
        log.update(Metrics(jnp.float32(jnp.nan), jnp.float32(jnp.inf), None, jnp.bool_(True), None))
        log.valid(mse=float("nan"))
    text = (tmp_path / "metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in text.splitlines()]
    assert [row["kind"] for row in rows] == ["warning", "train", "valid"]
    assert rows[1]["loss"] is None and rows[1]["non_finite"] == 1 and rows[2]["mse"] is None
