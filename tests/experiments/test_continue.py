"""Programs continue: predictions from yesterday's carry, training from an earlier run; warnings."""

import csv
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from experiments import predict
from experiments.support.train.advice import few_update_warnings
from experiments.support.train.linear import Filter, Linear
from experiments.support.train.task import Forecast
from tests.support.predictions import a_run
from tests.support.train_run import float32_in, go

SMALL = ["--cell", "mingru", "--hidden", 4, "--k1", 20, "--k2", 20, "--batch", 2, "--epochs", 1]


@pytest.fixture(autouse=True)
def setting(tmp_path, monkeypatch):
    with float32_in(tmp_path, monkeypatch):
        t = np.arange(900)
        np.save("all.npy", np.sin(t / 5)[:, None] + 0.1 * np.cos(t / 7)[:, None])
        np.save("shifted.npy", 5 + 3 * np.load("all.npy"))
        np.save("day1.npy", np.load("all.npy")[:500])
        np.save("day2.npy", np.load("all.npy")[500:])
        yield


def predictions(*flags):
    config = tyro.cli(predict.Config, args=[str(flag) for flag in flags])
    with open(predict.main(config)["predictions"]) as file:
        return np.array([float(row["prediction"]) for row in csv.DictReader(file)])


def test_two_days_with_a_carry_equal_one_long_file(tmp_path):
    """A run with a linear forecast by three rows, which the carry contains too."""
    linear = Linear((Filter(np.array([3]), np.array([[0.9], [-0.4], [0.3], [0.1]])),))
    task = Forecast(("0",), "0", 1, (0.1,), (1.5,), 0.1, 1.5)
    a_run(tmp_path / "run", task, {1: 0.5}, linear)
    whole = predictions("run", "--data", "all.npy", "--block", 128)
    first = predictions("run", "--data", "day1.npy", "--block", 128, "--carry-out", "carry")
    second = predictions("run", "--data", "day2.npy", "--block", 128, "--carry-in", "carry")
    cold = predictions("run", "--data", "day2.npy", "--block", 128, "--out", "cold.csv")
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-5, atol=1e-6)
    assert abs(cold[0] - whole[500]) > 1e-3
    for flag, words in (
        ("--carry-in", "no file"),
        ("--carry-out", "in a folder that does not exist"),
    ):
        with pytest.raises(FileNotFoundError, match=f"{flag} none/no is {words}"):
            predictions("run", "--data", "day2.npy", flag, "none/no")


@pytest.mark.exhaustive
def test_a_run_starts_from_the_params_and_the_scaling_of_another(capsys):
    assert go(capsys, "--data", "all.npy", "--target", 0, *SMALL, "--out", "old")[0] == 0
    flags = ["--data", "shifted.npy", "--target", 0, *SMALL, "--lr", 1e-9, "--out", "new"]
    assert go(capsys, *flags, "--init-from", "old")[0] == 0
    old, new = (
        json.loads(Path(f"{name}/config.json").read_text())["task"] for name in ("old", "new")
    )
    assert new == old  # mean and scale are those of all.npy
    # With a rate of about 0 the parameters remain those of the old run.
    np.testing.assert_allclose(
        predictions("new", "--data", "all.npy"), predictions("old", "--data", "all.npy"), rtol=1e-4
    )
    status, _, err = go(capsys, "--resume", "new", "--epochs", 2)
    assert status == 0, err
    other = ["--hidden", 7, "--cell", "gru", "--init-from", "old", "--out", "other"]
    status, _, err = go(capsys, "--data", "all.npy", "--target", 0, *SMALL, *other)
    assert status == 1 and "--hidden is 7, there 4. Give --cell mingru --hidden 4" in err
    status, _, err = go(capsys, "--resume", "old", "--data", "shifted.npy")
    assert status == 1 and "to train on other data give --init-from FOLDER" in err
    other = ["--horizon", 3, "--init-from", "old", "--out", "other"]
    status, _, err = go(capsys, "--data", "all.npy", "--target", 0, *other)
    assert status == 1 and "must have the same task; its horizon is 1, here 3" in err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ((5000, 4, 1600, 1), ["fewer than --k1 5000", "only 1 updates"]),
        ((50, 4000, 2, 100), ["fewer than --k1 50: one update per pass"]),
        ((50, 32, 200, None), ["only 4 updates per pass"]),
        ((50, 32, 2000, 40), []),
    ],
)
def test_settings_that_can_hardly_learn_are_a_warning(setting, words):
    found = [f"{message}; {advice}" for message, advice in few_update_warnings(*setting)]
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_an_absent_device_is_one_sentence(capsys, monkeypatch):
    def absent():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", absent)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    status, out, err = go(capsys, "--data", "all.npy", "--target", 0, *SMALL)
    assert status == 1 and out == "" and len(err.splitlines()) == 1
    assert "train: no device for JAX_PLATFORMS=cuda. Unset JAX_PLATFORMS" in err


@pytest.mark.exhaustive
def test_columns_that_stop_or_are_constant_are_warned_of_and_can_be_left_out(capsys):
    rng, t = np.random.default_rng(0), np.arange(900)
    stops = np.where(t < 700, rng.normal(size=900), 2.5)
    far = np.where(t < 810, rng.normal(size=900), 40.0 + rng.normal(size=900))
    flat = np.full(900, 7.0)
    columns = np.stack([np.sin(t / 5), stops, far, flat, rng.normal(size=900)], axis=1)
    np.savetxt("t.csv", columns, delimiter=",", header="y,stops,far,flat,ok", comments="")
    status, _, err = go(capsys, "--data", "t.csv", "--target", "y", *SMALL, "--out", "a")
    assert status == 0 and "column 'flat' is constant (7) over the training part" in err
    assert "column stops is constant (2.5) in the validation part, unlike in training" in err
    assert re.search(r"column far has the mean (39|40)\S* in the test part", err)
    assert "consider --without far" in err
    assert "column ok" not in err and "column y" not in err and "column flat is" not in err
    less = ["--without", "stops", "far", "flat"]
    status, _, err = go(capsys, "--data", "t.csv", "--target", "y", *SMALL, "--out", "b", *less)
    assert status == 0 and "arning" not in err
    assert json.loads(Path("b/config.json").read_text())["task"]["columns"] == ["y", "ok"]
    status, _, err = go(capsys, "--data", "t.csv", "--target", "y", *SMALL, "--without", "x")
    wanted = "t.csv, y, stops, far, flat, ok; got 'x'"
    assert "without (--without) must name columns of" in err
    assert status == 1 and wanted in err
    status, _, err = go(capsys, "--data", "t.csv", "--target", "flat", *SMALL, "--out", "c")
    assert status == 1 and "column 'flat' is constant (7)" in err
