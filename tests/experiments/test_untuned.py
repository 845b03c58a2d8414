"""Tests of the series of experiments.untuned, and of one small run."""

import subprocess
import sys

import numpy as np
import pytest

from experiments import untuned
from tests.support.train_run import float32_in, go


def test_the_series_are_what_the_docstring_says():
    t, tones = np.arange(untuned.ROWS), untuned.two_tones()[:, 0]
    waves = [f(2 * np.pi * t / period) for period in (20, 33.7) for f in (np.sin, np.cos)]
    rest = tones - np.linalg.lstsq(np.stack(waves, 1), tones, rcond=None)[0] @ np.stack(waves)
    assert np.std(rest) == pytest.approx(0.15, rel=0.02)
    columns = untuned.ten_columns()
    stop = 2 * untuned.ROWS // 3
    spread = np.ptp(columns[stop:], axis=0)
    assert columns.shape == (untuned.ROWS, 10)
    assert not spread[7:].any() and (spread[:7] > 1).all()
    assert (columns[:stop].std(axis=0) > 0.3).all() and np.abs(columns).max() < 10


@pytest.mark.exhaustive
def test_a_series_is_trained_and_compared_with_ridge_regression(monkeypatch, tmp_path, capsys):
    """The program that trains runs in this process, with a small cell."""

    def run(command, **how):
        assert command[:3] == [sys.executable, "-m", "experiments.train"]
        assert how == {"capture_output": True, "text": True}
        status, out, err = go(capsys, *command[3:], "--cell", "mingru", "--hidden", 3)
        return subprocess.CompletedProcess(command, status, out, err)

    monkeypatch.setattr(untuned.subprocess, "run", run)

    def square():
        return untuned.two_tones()[:4000] ** 2

    monkeypatch.setattr(
        untuned, "SERIES", {"Mackey-Glass": untuned.Series(square, "c0", 3)}
    )  # its target has a second expectation
    with float32_in(tmp_path, monkeypatch):
        data = untuned.measure(untuned.Config(seeds=1, minutes=0.01, seed=3))
    ratio, normalised = data["targets"]
    found = data["results"]["series"]["Mackey-Glass"]
    assert ratio["value"] == pytest.approx(
        found["rmse"][0] / found["baselines"]["ridge AR(256)"], rel=1e-5
    )
    assert normalised["value"] == pytest.approx(found["rmse"][0] / square()[:3200].std(), rel=1e-3)
    assert ratio["reached"] == (ratio["value"] <= 1) and not normalised["reached"]
    untuned.draw(data, tmp_path)
    assert (tmp_path / "untuned.png").stat().st_size > 10_000
    monkeypatch.setattr(
        untuned, "SERIES", {"short": untuned.Series(lambda: square()[:20], "c0", 3)}
    )
    wanted = "needs at least 4 rows in each part"
    with float32_in(tmp_path, monkeypatch), pytest.raises(ValueError, match=wanted):
        untuned.measure(untuned.Config(seeds=1, minutes=0.01))
