"""Flags of experiments.train that do not fit each other or the data are refused in one line."""

import pytest

from tests.support.train_run import WAVES, float32_in, go, write_waves


@pytest.fixture(autouse=True)
def setting(tmp_path, monkeypatch):
    with float32_in(tmp_path, monkeypatch):
        write_waves()
        yield


REFUSED = {
    "nothing": ([], "--data is required"),
    "no target": (
        ["--data", "waves.csv"],
        "--target is required: the column to predict, one of a, b",
    ),
    "no such column": (
        ["--data", "waves.csv", "--target", "c"],
        "waves.csv has no column 'c'; its columns are a, b",
    ),
    "no such input": (
        ["--data", "waves.csv", "--target", "a", "--columns", "x"],
        "waves.csv has no column 'x'; its columns are a, b",
    ),
    "no such file": (["--data", "wave.csv", "--target", "a"], "there is no file"),
    "a folder": (["--data", ".", "--target", "a"], "must end in one of"),
    "an empty file": (["--data", "empty.csv", "--target", "a"], "is empty"),
    "an empty text": (["--data", "empty.txt", "--task", "characters"], "is empty; expected text"),
    "one character": (
        ["--data", "one.txt", "--task", "characters"],
        "at least two different characters; got only b'a'",
    ),
    "horizon": (
        [*WAVES, "--horizon", 900],
        "a forecast 900 rows ahead (--horizon) needs at least 901 rows in each part",
    ),
    "horizon 0": ([*WAVES, "--horizon", 0], "so it must not be an input, as it is by default"),
    "negative horizon": ([*WAVES, "--horizon", -1], "--horizon must be at least 0; got -1"),
    "forecasts": (
        [*WAVES, "--horizon", 5, "--forecasts", 2],
        "--forecasts must divide --horizon; got 2 and 5",
    ),
    "k1 does not divide": (
        [*WAVES, "--estimator", "randomized", "--k1", 7, "--k2", 30],
        "k2 must be a multiple of k1 and at least 4 k1; got k1=7, k2=30. Try --k2 28",
    ),
    "k2 too short": (
        [*WAVES, "--estimator", "adaptive", "--k1", 7, "--k2", 7],
        "k2 must be larger than k1; got k1=7, k2=7. Try --k2 56",
    ),
    "k2 of full": (
        [*WAVES, "--estimator", "full", "--k2", 7, "--batch", 4],
        "each whole training sequence, here 160 steps; got --k2 7",
    ),
    "unroll parallel": (
        [*WAVES, "--unroll", "parallel"],
        "supports --cell minlstm and mingru of one layer; got --cell lstm",
    ),
    "unroll numba": ([*WAVES, "--unroll", "numba", "--cell", "mingru"], "Try --unroll scan"),
    "k1 0": ([*WAVES, "--k1", 0], "--k1 must be at least 1; got 0"),
    "batch": (
        [*WAVES, "--batch", 700],
        "--batch must be at most 640, the number of training rows; got 700",
    ),
    "lr": ([*WAVES, "--lr", -1], "--lr must be above 0; got -1"),
    "two limits": (
        [*WAVES, "--epochs", 1, "--minutes", 1],
        "exactly one of --epochs and --minutes must be given; got --epochs 1 and",
    ),
    "no time": ([*WAVES, "--epochs", 0], "must be above 0; got 0"),
    "shares": (
        [*WAVES, "--valid", 0.5, "--test", 0.5],
        "above 0 and their sum below 1; got 0.5 and 0.5",
    ),
    "no recordings": (
        [*WAVES, "--task", "classify"],
        "recording in each of the three parts; got 1 in total",
    ),
    "group is target": (
        ["--data", "waves.csv", "--target", "a", "--group", "a"],
        "different columns; got 'a' for both",
    ),
    "resume nothing": (
        ["--resume", "nowhere"],
        "nowhere is not the folder of a run: it has no config.json",
    ),
    "devices": ([*WAVES, "--devices", 3, "--batch", 4], "devices"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_misuse_is_refused_in_one_line_that_names_the_flag(what, capsys, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text("a" * 100)
    flags, message = REFUSED[what]
    status, out, err = go(capsys, *flags)
    assert (
        status == 1
        and out == ""
        and message in err
        and err.startswith("train: ")
        and err.count("\n") <= 2
    )
    assert not list(tmp_path.glob("runs/**/config.json"))
