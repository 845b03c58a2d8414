"""The linear forecast that a run starts from, against plain loops and its own scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from experiments import train
from experiments.support.train import linear_fit
from experiments.support.train.choices import DEFAULT_K1
from experiments.support.train.linear import (
    Filter,
    Linear,
    SourceForecasts,
    past_rows,
    residual_batches,
)
from experiments.support.train.linear_fit import fit_linear
from tbptt.data import Span, forecast_batches
from tests.support.train_run import float32_in, go, last


@pytest.fixture(autouse=True)
def setting(tmp_path, monkeypatch):
    with float32_in(tmp_path, monkeypatch):
        yield


class Rows:
    """A source of arrays in memory."""

    def __init__(self, values, lengths=None, good=None):
        self.values, self.lengths = values, tuple(lengths or [len(values)])
        self.names = tuple("abcdefgh"[: values.shape[1]])
        if good is not None:
            self.good = lambda start, stop: good[start:stop]

    def read(self, start, stop):
        return self.values[start:stop]

    def path_of(self, row):
        return f"row {row}"


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


W4, W2 = drawn((5, 2), 1), drawn((3, 2), 2)  # 3 rows of a, 1 of b; 1 of each
LINEAR = Linear((Filter(np.array([1, 1]), W2), Filter(np.array([3, 1]), W4)))


def by_loops(values, lengths):
    found, begin = np.zeros((len(values), 2)), 0
    for length in lengths:
        for t in range(begin, begin + length):
            for k in range(2):
                if t - begin >= 2:
                    past = [values[t, 0], values[t - 1, 0], values[t - 2, 0], values[t, 1], 1]
                    found[t, k] = sum(w * x for w, x in zip(W4[:, k], past, strict=True))
                else:
                    found[t, k] = W2[0, k] * values[t, 0] + W2[1, k] * values[t, 1] + W2[2, k]
        begin += length
    return found


def test_the_longest_filter_that_the_recording_fills_is_used():
    values = drawn((150, 2))
    wanted = by_loops(values, (1, 70, 2, 77))
    forecasts = SourceForecasts(LINEAR, Rows(values, (1, 70, 2, 77)), (0, 1))
    for block in (1, 7, 64, 150):
        got = [forecasts(at, min(at + block, 150)) for at in range(0, 150, block)]
        np.testing.assert_allclose(np.concatenate(got), wanted, rtol=0, atol=1e-12)


def test_a_forecast_depends_on_no_later_row_and_continues_from_the_last_rows():
    values = drawn((150, 2))
    whole = SourceForecasts(LINEAR, Rows(values), (0, 1))(0, 150)
    for stop in (1, 63, 64, 100):
        first = SourceForecasts(LINEAR, Rows(values[:stop]), (0, 1))
        np.testing.assert_array_equal(first(0, stop), whole[:stop])
        second = SourceForecasts(LINEAR, Rows(values[stop:]), (0, 1), first.last_rows())
        np.testing.assert_allclose(second(0, 150 - stop), whole[stop:], rtol=0, atol=1e-12)
    long = Linear((Filter(np.array([256, 0]), drawn((257, 1))),))
    values = drawn((1300, 2))
    wanted = SourceForecasts(long, Rows(values), (0, 1))(0, 1300)
    for stop in (257, 300, 1001, 1203):
        np.testing.assert_array_equal(
            SourceForecasts(long, Rows(values[:stop]), (0, 1))(0, stop), wanted[:stop]
        )


def test_last_rows_of_few_rows():
    values = drawn((150, 2))
    first = SourceForecasts(LINEAR, Rows(values[:100]), (0, 1))
    # The last rows of what continues for fewer rows than the filter reads
    third = SourceForecasts(LINEAR, Rows(values[100:101]), (0, 1), first.last_rows())
    np.testing.assert_array_equal(third.last_rows(), values[99:101])
    np.testing.assert_array_equal(
        SourceForecasts(LINEAR, Rows(values[:1]), (0, 1)).last_rows(), [[np.nan] * 2, values[0]]
    )


def test_a_masked_row_holds_the_row_before_it():
    values, good = drawn((6, 2)), np.array([False, True, True, False, False, True])
    past, known = past_rows(Rows(values, good=good), (0, 1), Span(2, 6, 0, 6), 3)
    held = np.stack([0 * values[0], values[1], values[2], values[2], values[2], values[5]])
    np.testing.assert_array_equal(past, held)
    np.testing.assert_array_equal(known, [3, 4, 5, 6])


def test_the_fit_is_that_of_ridge_regression_on_the_training_part(monkeypatch):
    """Two horizons of the first of two columns; every recording is longer than the order."""
    monkeypatch.setattr(linear_fit, "ORDERS", (4, 8, 16, 32))
    values = np.cumsum(drawn((1200, 2)), axis=0) % 7 + 20
    make = forecast_batches("a", (1, 3))
    # Rows of the validation part choose, and the rows after it change nothing.
    source = Rows(np.concatenate([values, 9 + values]), (700, 1700))
    fitted = fit_linear(source, make, (0, 1), 0, 900, 1200)
    (a, b), (order, ridge) = fitted.linear.filters[-1].lags, (fitted.linear.order, fitted.ridge)
    longest = max(fitted.by_order)
    assert longest == 32 and fitted.valid == min(fitted.by_order.values())

    def part(begin, end, start):
        rows = range(max(begin + longest - 1, start), end - 3)
        x = [[*values[t - a + 1 : t + 1, 0][::-1], *values[t - b + 1 : t + 1, 1][::-1], 1]
             for t in rows]  # fmt: skip
        return np.array(x), np.array([[values[t + 1, 0], values[t + 3, 0]] for t in rows])

    x, y = map(np.concatenate, zip(part(0, 700, 0), part(700, 900, 0), strict=True))
    penalty = ridge * len(x) * np.eye(x.shape[1])
    penalty[-1, -1] = 0
    wanted = scipy.linalg.solve(x.T @ x + penalty, x.T @ y)
    np.testing.assert_allclose(fitted.linear.filters[-1].weights, wanted, rtol=1e-7, atol=1e-9)
    x, y = part(700, 1200, 900)
    np.testing.assert_allclose(fitted.valid, np.mean((y - x @ wanted) ** 2), rtol=1e-9)
    assert [one.order for one in fitted.linear.filters] == [
        order for order in (4, 8, 16, 32) if order <= fitted.linear.order
    ]
    assert order >= 4 and fit_linear(Rows(values[:9]), make, (0, 1), 0, 6, 9) is None


def test_the_network_learns_what_the_linear_forecast_leaves():
    values = drawn((40, 2))
    make = forecast_batches("a", (1, 3))
    source, span = Rows(values, (25, 15)), Span(25, 35, 25, 40)
    plain, rest = make(source, span), residual_batches(make, LINEAR, (0, 1))(source, span)
    forecast = by_loops(values, (25, 15))[25:35]
    np.testing.assert_allclose(rest.inputs, np.hstack([plain.inputs, forecast]), atol=1e-12)
    np.testing.assert_allclose(rest.targets + forecast, plain.targets, atol=1e-12)
    tail = residual_batches(make, LINEAR, (0, 1))(source, Span(35, 40, 25, 40))
    np.testing.assert_array_equal(tail.targets[tail.weights == 0], 0)


K1 = 20
FLAGS = ["--target", 0, "--cell", "mingru", "--hidden", 3, "--batch", 4, "--epochs", 4]
FLAGS += ["--checkpoint-seconds", 1000]


def test_a_run_starts_at_the_error_of_the_linear_forecast_and_says_what_it_chose(capsys, tmp_path):
    t = np.arange(800)
    noise = np.random.default_rng(0).normal(size=(2, 800))
    np.save("waves.npy", np.stack([np.sin(t / 5), np.cos(t / 7)], axis=1) + 0.3 * noise.T)
    status, out, err = go(capsys, "--data", "waves.npy", *FLAGS, "--k2", K1, "--out", "run")
    assert status == 0, err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    valid = [row for row in rows if row["kind"] == "valid"]
    said = float(err.split("rmse of the validation part ")[1].split()[0])
    assert valid[0]["step"] == 0
    scale = json.loads(Path("run/config.json").read_text())["task"]["target_scale"]
    # The network scores rows that the fit leaves out: those with a shorter past.
    np.testing.assert_allclose(valid[0]["rmse"] / scale, said, rtol=2e-3)
    assert last(out)["valid_rmse"] == min(row["rmse"] for row in valid)
    k1 = json.loads(Path("run/config.json").read_text())["k1"]
    assert k1 == K1
    assert f"--k1 {k1}: the squared error of a linear forecast by the last" in err
    flags = ["--data", "waves.npy", *FLAGS, "--longest-lag", 9, "--out", "lag"]
    status, _, err = go(capsys, *flags)
    assert status == 1 and "--longest-lag is for --cell lstm and gru; got 9 with --cell" in err


def test_half_of_a_run_without_a_better_validation_ends_it(capsys):
    """A sine is a linear function of its past, so no network is better."""
    t = np.arange(800)
    np.save("sine.npy", np.stack([np.sin(t / 5), np.cos(t / 5)], axis=1))
    flags = ["--data", "sine.npy", *FLAGS, "--k1", K1, "--k2", K1]  # the program of the run above
    status, out, err = go(capsys, *flags, "--out", "run")
    assert status == 0 and last(out)["updates"] == 16, err
    assert last(out)["checkpoint"].endswith("_000000000")
    assert "after update 16: no better validation within half of the run\nTo train longer: " in err
    status, out, err = go(capsys, "--resume", "run")  # it has ended
    assert status == 0 and last(out)["updates"] == 16
    status, out, err = go(capsys, "--resume", "run", "--patience", 0)
    assert status == 0 and last(out)["updates"] == 32


@pytest.mark.exhaustive
def test_other_tasks_have_the_default_window(capsys, tmp_path):
    Path("book.txt").write_text("to be or not to be, " * 400)
    flags = (
        "--data",
        "book.txt",
        "--task",
        "characters",
        "--cell",
        "mingru",
        "--hidden",
        4,
        "--epochs",
        1,
    )
    assert go(capsys, *flags, "--out", "run")[0] == 0
    settings = json.loads(Path("run/config.json").read_text())
    assert settings["k1"] == DEFAULT_K1 and settings["linear"] is False
    assert train.Config().k1 == "auto"
