"""People, machines or files of their own are the test part of a run, and nothing of them trains."""

import csv
import json
import re
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
import tyro

from experiments import predict, train
from experiments.support.train.data import open_data, training_stream
from experiments.support.train.params import load_params, model_of
from experiments.support.train.result import warm_up
from experiments.support.train.task import from_json
from tests.support.train_run import float32_in, go, last

PEOPLE, STEPS = ("7", "8", "9", "10", "11"), 60
RNG = np.random.default_rng(0)
ROWS = pl.DataFrame(
    {
        "person": np.repeat(np.array(PEOPLE, int), STEPS),
        "pulse": np.cumsum(RNG.normal(size=len(PEOPLE) * STEPS)),
        "warm": RNG.normal(size=len(PEOPLE) * STEPS),
    }
)
# Every person walks and runs, 30 rows each; the trials of all people have the numbers 0 and 1.
TRIALS = ROWS.with_columns(
    trial=pl.int_range(pl.len()) // 30 % 2,
    does=pl.when((pl.int_range(pl.len()) // 30 + pl.col("person")) % 2 == 0)
    .then(pl.lit("walk")).otherwise(pl.lit("run")),
)  # fmt: skip
SMALL = ["--cell", "mingru", "--hidden", 3, "--k1", 10, "--k2", 10, "--batch", 2, "--epochs", 1]
FORECAST = ["--data", "panel.csv", "--target", "pulse", *SMALL]
HELD = ["--hold-out", "person=9,10"]


@pytest.fixture(autouse=True)
def setting(tmp_path, monkeypatch):
    with float32_in(tmp_path, monkeypatch):
        ROWS.write_csv("panel.csv")
        TRIALS.write_csv("trials.csv")
        yield


def parsed(*flags):
    return tyro.cli(train.Config, args=[str(flag) for flag in flags])


def columns_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def of_people(frame, *people):
    return frame.filter(pl.col("person").cast(pl.String).is_in(people))


def params_of(run):
    settings = json.loads(Path(run, "config.json").read_text())
    task = from_json(settings["task"], "")
    return load_params(Path(run), model_of(Path(run), task, settings), 1)[0]


def test_the_parts_consist_of_whole_groups(capsys):
    data = open_data(parsed(*FORECAST, *HELD))
    assert data.descriptions == {
        "training": "person 7, 8, 120 rows in 2 recordings",
        "validation": "person 11, 60 rows in 1 recording",
        "test": "person 9, 10, 120 rows in 2 recordings",
    }
    assert data.ends == (120, 180, 300) and data.source.lengths == (60,) * 5
    order = np.concatenate([np.arange(120), np.arange(240, 300), np.arange(120, 240)])
    np.testing.assert_array_equal(data.rows_of(np.arange(300)), order)
    wanted = ROWS.select("pulse", "warm").to_numpy()
    np.testing.assert_array_equal(data.source.read(0, 300), wanted[order])
    assert data.task.columns == ("pulse", "warm")
    np.testing.assert_allclose(data.task.mean, wanted[:120].mean(axis=0), rtol=1e-6)
    assert (warm_up(data, 10, 180), warm_up(data, 10, 200)) == (0, 100)  # a recording begins cold
    both = open_data(parsed(*FORECAST, "--hold-out", "person=7.0", "--valid", 0.5))
    assert both.descriptions["test"].startswith("person 7, ") and both.ends == (120, 240, 300)
    # With --sort, and by name; the text of a group may contain a comma.
    names = ROWS.with_columns(
        person="Doe, " + pl.col("person").cast(pl.String), t=pl.int_range(300)
    )
    names.reverse().write_csv("named.csv")
    flags = ["--data", "named.csv", "--target", "pulse", "--hold-out", "person=Doe, 9", "--sort"]
    data = open_data(parsed(*flags, "--time", "t"))
    assert data.descriptions["test"] == "person Doe, 9, 60 rows in 1 recording"
    np.testing.assert_array_equal(data.source.read(240, 300), wanted[120:180])
    np.testing.assert_array_equal(data.source.times(240, 300), np.arange(120, 180))


REPEATED = [
    ("Person {}", "Person 9, Person 10"),
    ("person_{}", "person_9, person_10"),
    ("personal {}", "person personal 9, personal 10"),
]


@pytest.mark.parametrize(("label", "wanted"), REPEATED)
def test_the_name_of_the_column_is_not_repeated(label, wanted):
    named = pl.format(label, pl.col("person"))
    ROWS.with_columns(person=named).write_csv("named.csv")
    held = ",".join(label.format(person) for person in (9, 10))
    flags = ["--data", "named.csv", "--target", "pulse", "--hold-out", f"person={held}"]
    assert open_data(parsed(*flags)).descriptions["test"] == f"{wanted}, 120 rows in 2 recordings"


@pytest.mark.parametrize(
    "flags",
    [HELD, pytest.param(["--test-data", "held.csv"], marks=pytest.mark.exhaustive)],
    ids=["hold-out", "test-data"],
)
def test_the_score_of_held_out_rows_is_that_of_predict_and_they_train_nothing(flags, capsys):
    """Other values in the rows of the test part change nothing but the score."""
    of_people(ROWS, "9", "10").write_csv("held.csv")
    rest = of_people(ROWS, "7", "8", "11")
    if flags is not HELD:
        rest.write_csv("panel.csv")
    flags = [*FORECAST, "--group", "person", "--horizon", 2, "--no-linear", *flags]
    status, out, err = go(capsys, *flags, "--out", "run")
    assert status == 0, err
    summary = last(out)
    assert summary["parts"]["test"] in err and summary["parts"]["training"] in err
    assert "linear forecast" not in err and not Path("run/linear.npz").exists()
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    valid = [row["step"] for row in rows if row["kind"] == "valid"]
    assert min(valid) > 0  # no validation before the first update
    scored = predict.main(predict.Config(Path("run"), Path("held.csv"), score=True))
    assert scored["rmse"] == summary["test_rmse"] and scored["scored"] == summary["test_scored"]
    assert scored["scored"] == 2 * (STEPS - 2)
    tested, predicted = columns_of("run/predictions.csv"), columns_of(scored["predictions"])
    for name in ("truth", "prediction"):
        assert [row[name] for row in tested] == [row[name] for row in predicted]
    first = 2 * STEPS if "--hold-out" in flags else 0
    assert [int(row["row"]) for row in tested] == list(range(first, first + 2 * STEPS))
    # other held-out rows
    other = ROWS.with_columns(pl.when(pl.col("person").is_in([9, 10])).then(1e3 * pl.col("pulse"))
                              .otherwise(pl.col("pulse")).alias("pulse"))  # fmt: skip
    of_people(other, "9", "10").write_csv("held.csv")
    (other if "--hold-out" in flags else rest).write_csv("panel.csv")
    status, out, err = go(capsys, *flags, "--out", "other")
    assert status == 0, err
    assert last(out)["test_rmse"] > 3 * summary["test_rmse"]
    assert last(out)["valid_rmse"] == summary["valid_rmse"]
    jax.tree.map(np.testing.assert_array_equal, params_of("other"), params_of("run"))
    # a resumed run keeps its parts
    moved = []
    if "--test-data" in flags:
        Path("held.csv").rename("moved.csv")
        moved = ["--test-data", "moved.csv"]
    status, out, err = go(capsys, "--resume", "other", "--epochs", 2, *moved)
    assert status == 0 and last(out)["rows"] == summary["rows"], err
    about = summary["parts"]["test"].replace("held.csv", "moved.csv" if moved else "held.csv")
    assert last(out)["parts"] == summary["parts"] | {"test": about}
    status, _, err = go(capsys, "--resume", "other", "--hold-out", "person=7")
    assert status == 1 and "--hold-out is" in err and "cannot change when a run is resumed" in err


def test_recordings_of_held_out_people_stay_whole(capsys):
    """The trials of a person are recordings of their own, and none joins two people."""
    flags = ["--data", "trials.csv", "--target", "does", "--task", "classify", "--group", "trial"]
    joined = TRIALS.filter(pl.col("trial") == 0)  # one trial beside the other
    joined.write_csv("joined.csv")
    data = open_data(parsed(*flags, "--hold-out", "person=8"))
    assert data.source.lengths == (30,) * 10 and data.task.columns == ("pulse", "warm")
    assert data.descriptions["test"] == "person 8, 60 rows in 2 recordings"
    assert data.task.group == "trial"
    flags[1] = "joined.csv"
    data = open_data(parsed(*flags, "--hold-out", "person=8", "--valid", 0.5))
    assert data.source.lengths == (30,) * 5 and data.ends == (60, 120, 150)
    batch = training_stream(data, 1, 60).chunk(0).batch
    assert np.flatnonzero(batch.resets).tolist() == [0, 30]
    trained = joined.filter(pl.col("person").is_in([7, 9]))["pulse"]
    np.testing.assert_allclose(data.task.mean[0], trained.mean(), rtol=1e-6)


def test_files_of_classes_to_test_on(capsys):
    for person in PEOPLE:
        of_people(TRIALS, person).filter(pl.col("trial") == 0).write_csv(f"{person}.csv")
    flags = ["--data", "7.csv", "8.csv", "10.csv", "--target", "does", "--task", "classify"]
    data = open_data(parsed(*flags, "--test-data", "9.csv", "11.csv"))
    assert data.descriptions == {
        "training": "rows 0 to 59, 60 rows in 2 recordings",
        "validation": "rows 60 to 89, 30 rows in 1 recording",
        "test": "9.csv, 11.csv, 60 rows in 2 recordings",
    }
    assert data.rows_of(np.array([0, 89, 90, 149])).tolist() == [0, 89, 0, 59]
    assert data.source.path_of(90).startswith("9.csv, row 2 ")


REFUSED = {
    "no such value": (
        [*FORECAST, "--hold-out", "person=9,12"],
        "--hold-out person=9,12: no row has person 12; the values are 7, 8, 9, 10, 11",
    ),
    "no such column": (
        [*FORECAST, "--hold-out", "who=9"],
        "panel.csv has no column 'who'",
    ),
    "no values": ([*FORECAST, "--hold-out", "person"], "such as person=9,10; got 'person'"),
    "too many": (
        [*FORECAST, "--hold-out", "person=7,8,9,10"],
        "leaves 1 of 5 groups, of which 1 would be for validation (--valid 0.1) and none for "
        "training. Hold out fewer groups",
    ),
    "both": (
        [*FORECAST, *HELD, "--test-data", "trials.csv"],
        "both give a test part; omit one of them",
    ),
    "the same file": (
        [*FORECAST, "--test-data", "panel.csv"],
        "panel.csv is in --data, too; remove it from one of them",
    ),
    "a fraction, too": (
        [*FORECAST, *HELD, "--test", 0.2],
        "--test 0.2 is a fraction of --data, but --hold-out gives the test part; omit one of them",
    ),
    "no validation": ([*FORECAST, *HELD, "--valid", 0], "must be above 0"),
    "an input": ([*FORECAST, *HELD, "--columns", "person"], "which are not inputs; got person"),
    "the target": (
        ["--data", "panel.csv", "--target", "person", *HELD],
        "--hold-out must name a column that is not the target; got 'person'",
    ),
    "a long horizon": (
        [*FORECAST, *HELD, "--horizon", 60],
        "a forecast 60 rows ahead (--horizon) needs a recording of at least 61 rows in each part; "
        "the longest one of the training part (person 7, 8, 120 rows in 2 recordings) has 60",
    ),
    "other columns": (
        [*FORECAST, "--test-data", "trials.csv"],
        "trials.csv has the columns person, pulse, warm, trial;",
    ),
    "text": (
        ["--data", "panel.csv", "--task", "characters", "--test-data", "trials.csv"],
        "--test-data is for tables; --task characters tests the end of the text",
    ),
    "an unknown class": (
        [
            "--data",
            "classes.csv",
            "--target",
            "does",
            "--task",
            "classify",
            "--hold-out",
            "person=9",
        ],
        "classes.csv, row 181 (the header is row 1), column 'does' is swim, a class of no "
        "recording for training or validation (walk)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_test_part_that_cannot_be_is_refused_with_the_remedy(what, capsys):
    swims = pl.when(pl.col("person") == 9).then(pl.lit("swim")).otherwise(pl.lit("walk"))
    ROWS.with_columns(does=swims).write_csv("classes.csv")
    flags, message = REFUSED[what]
    status, out, err = go(capsys, *flags)
    assert status == 1 and out == "" and not list(Path.cwd().glob("runs/**/config.json"))
    assert message in re.sub(re.escape(str(Path.cwd())) + "/", "", err.splitlines()[-1])
