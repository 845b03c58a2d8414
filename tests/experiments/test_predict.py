"""Tests of experiments.predict."""

import csv
import json
import types

import jax
import numpy as np
import pytest
import scipy.special

from experiments.support.train import task as run_task
from experiments.support.train.model import make_model
from experiments.support.train.predicting import Score, predict_blocks
from experiments.support.train.prediction_file import PredictionFile
from experiments.support.train.prediction_steps import open_for
from experiments.support.train.task import Characters, Classify, Forecast
from tbptt.data import BadSample
from tests.support.predictions import TASK, A, B, T, table, trained


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))


def run(task, source, block, score=False, skip=0, cell="elman"):
    model, params = trained(task, cell)
    scored = Score(task)
    blocks = []
    for columns, outputs, steps in predict_blocks(
        task, model, params, source, block, score=score, skip=skip
    ):
        scored.add(outputs, steps)
        blocks.append(columns)
    return {
        name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]
    }, scored.result()


def reference(inputs, resets, task=TASK, cell="elman"):
    """Compute the outputs of the readout, one step at a time in a Python loop."""
    model, params = trained(task, cell)
    outputs, carry, initial = [], None, jax.jit(model.cell.initial_carry)()

    @jax.jit
    def step(params, carry, x):
        x = x if model.embedding is None else model.embedding.apply(params.embedding, x)
        carry, y = model.cell(params.cell, carry, x)
        return carry, model.readout.apply(params.readout, y)

    for x, reset in zip(inputs, resets, strict=True):
        carry, output = step(params, initial if reset else carry, x)
        outputs.append(np.asarray(output))
    return np.stack(outputs)


def test_blocks_of_any_length_agree_with_a_loop_over_steps(tmp_path):
    source = open_for(TASK, [table(tmp_path / "t.csv")], False, np.float64)
    inputs = (np.stack([A, B], axis=1) - [1.5, 40.0]) / [4.0, 2.0]
    wanted = 1.5 + 4.0 * reference(inputs, [True] + [False] * (T - 1))[:, 0]
    assert np.std(wanted) > 0.05  # not constant
    for block in (1, 7, 64):
        got, _ = run(TASK, source, block)
        np.testing.assert_array_equal(got["row"], np.arange(T))
        np.testing.assert_allclose(got["prediction"], wanted, rtol=0, atol=1e-12)
    again, _ = run(TASK, source, 64)
    np.testing.assert_array_equal(again["prediction"], got["prediction"])


def test_later_rows_do_not_change_a_prediction_by_a_bit(tmp_path):
    whole = run(TASK, open_for(TASK, [table(tmp_path / "t.csv")], False, np.float64), 64)[0][
        "prediction"
    ]
    for stop in (1, 64, 70, 149):
        short = table(tmp_path / f"{stop}.csv", slice(0, stop))
        got = run(TASK, open_for(TASK, [short], False, np.float64), 64)[0]["prediction"]
        np.testing.assert_array_equal(got, whole[:stop])
    got, _ = run(TASK, open_for(TASK, [table(tmp_path / "u.csv")], False, np.float64), 64, skip=70)
    np.testing.assert_array_equal(got["prediction"], whole[70:])
    assert got["row"][0] == 70


def test_the_carry_is_reset_at_each_recording(tmp_path):
    task = Forecast(**{**TASK.__dict__, "group": "who"})
    who = np.repeat([5, 2, 5], [40, 60, 50])
    path = table(tmp_path / "t.csv", who=who)
    got, score = run(task, open_for(task, [path], True, np.float64), 64, score=True)
    for start, stop in ((0, 40), (40, 100), (100, 150)):
        alone = open_for(
            TASK, [table(tmp_path / f"{start}.csv", slice(start, stop))], True, np.float64
        )
        wanted, _ = run(TASK, alone, 64, score=True)
        np.testing.assert_array_equal(got["prediction"][start:stop], wanted["prediction"])
        np.testing.assert_array_equal(got["truth"][start:stop], wanted["truth"])
    assert score["scored"] == T - 3 * 3


@pytest.mark.parametrize("block", [7, 64])
def test_the_score_covers_the_rows_with_a_known_target(tmp_path, block):
    source = open_for(TASK, [table(tmp_path / "t.csv")], True, np.float64)
    got, score = run(TASK, source, block, score=True)
    np.testing.assert_array_equal(got["truth"][:-3], A[3:])
    assert np.isnan(got["truth"][-3:]).all()
    rmse = np.sqrt(np.mean((got["prediction"][:-3] - A[3:]) ** 2))
    mae = np.mean(np.abs(got["prediction"][:-3] - A[3:]))
    standardised = {"standardised_rmse": rmse / 4.0, "standardised_mae": mae / 4.0}
    assert score == pytest.approx(
        {"rmse": rmse, "mae": mae, **standardised, "scored": T - 3}, rel=1e-12
    )


def test_one_block_is_read_at_a_time(tmp_path):
    source, sizes = open_for(TASK, [table(tmp_path / "t.csv")], True, np.float64), []

    def read(start, stop):
        sizes.append(stop - start)
        return source.read(start, stop)

    run(
        TASK,
        types.SimpleNamespace(names=source.names, lengths=source.lengths, read=read),
        7,
        score=True,
    )
    assert max(sizes) == 7 + TASK.horizon and len(sizes) == 22


def test_errors_name_the_file_and_the_position(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,c\n1,2\n")
    with pytest.raises(ValueError, match=r"t.csv has no column 'b'; its columns are a, c"):
        open_for(TASK, [path], False)
    bad = table(tmp_path / "bad.csv")
    lines = bad.read_text().splitlines()
    lines[100] = "x y,,1"
    bad.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadSample, match=r"bad.csv, row 101 .*'b' is missing"):
        run(TASK, open_for(TASK, [bad], False, np.float64), 64)
    with pytest.raises(ValueError, match="--block must be at least 1 step; got 0"):
        run(TASK, open_for(TASK, [table(tmp_path / "t.csv")], False, np.float64), 0)


def test_a_text_is_scored_in_bits(tmp_path):
    task = Characters(tuple(b"\nab"))
    one, two = tmp_path / "1.txt", tmp_path / "2.txt"
    one.write_bytes(b"abba\nab")
    two.write_bytes(b"bb\n")
    source = open_for(task, [one, two], True)
    got, score = run(task, source, 4, score=True)
    numbers = np.array([1, 2, 2, 1, 0, 1, 2, 2, 2, 0])
    outputs = reference(numbers, np.arange(10) % 7 == 0, task)
    logs = scipy.special.log_softmax(outputs, axis=1) / np.log(2)
    scored = [i for i in range(9) if i != 6]  # the last symbol of a file has no next symbol
    assert score["scored"] == 8
    assert score["bits_per_byte"] == pytest.approx(
        -np.mean([logs[i, numbers[i + 1]] for i in scored]), rel=1e-12
    )
    assert got["truth"].tolist() == ["b", "b", "a", "\\n", "a", "b", "", "b", "\\n", ""]
    np.testing.assert_allclose(
        got["p_truth"][scored], [2 ** logs[i, numbers[i + 1]] for i in scored], rtol=1e-12
    )
    assert got["prediction"].tolist() == [["\\n", "a", "b"][i] for i in np.argmax(outputs, axis=1)]
    two.write_bytes(b"bb?\n")
    with pytest.raises(
        BadSample, match=r"2.txt, byte 2 .* is b'\?', a symbol that is not in the vocabulary"
    ):
        run(task, open_for(task, [one, two], False), 4)


def test_classes_are_scored_at_the_end_of_their_recording(tmp_path):
    task = Classify(("a",), "kind", (2.0, 7.0), (0.0,), (3.0,), "who")
    who = np.repeat([1, 2, 3], [40, 60, 50])
    kind = np.repeat([7, 2, 7], [40, 60, 50])
    source = open_for(task, [table(tmp_path / "t.csv", who=who, kind=kind)], True, np.float64)
    got, score = run(task, source, 64, score=True)
    outputs = reference(A[:, None] / 3.0, np.isin(np.arange(T), (0, 40, 100)), task)
    chances = scipy.special.softmax(outputs, axis=1)
    np.testing.assert_allclose(np.stack([got["p_2"], got["p_7"]], axis=1), chances, rtol=1e-9)
    np.testing.assert_array_equal(
        got["prediction"], np.array([2.0, 7.0])[np.argmax(chances, axis=1)]
    )
    ends = [39, 99, 149]
    assert score == {"scored": 3, "accuracy": np.mean(got["prediction"][ends] == kind[ends])}
    assert [row for row in range(T) if got["truth"][row]] == ends and got["truth"][39] == "7"
    with pytest.raises(BadSample, match=r"row 102 .*'kind' is 8, which is not a class .*2, 7"):
        open_for(
            task, [table(tmp_path / "u.csv", who=who, kind=kind + (who == 3))], True, np.float64
        )


def test_the_three_file_formats_contain_the_same_numbers(tmp_path):
    polars = pytest.importorskip("polars")
    values = np.random.default_rng(4).normal(size=10) * 1e-7 + 0.1
    truth = np.where(np.arange(10) > 7, np.nan, values)
    for name in ("p.csv", "p.npy", "p.parquet"):
        with PredictionFile(tmp_path / name) as file:
            for rows in (slice(0, 4), slice(4, 10)):
                file.write(
                    {"row": np.arange(10)[rows], "truth": truth[rows], "prediction": values[rows]}
                )
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["prediction"]) for row in rows] == values.tolist() and rows[9]["truth"] == ""
    assert np.load(tmp_path / "p.npy").tolist() == values.tolist()
    stored = polars.read_parquet(tmp_path / "p.parquet")
    assert stored["prediction"].to_list() == values.tolist() and stored["truth"].null_count() == 2
    assert stored["row"].to_list() == list(range(10)) == [int(row["row"]) for row in rows]


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path):
    for name in ("p.csv", "p.npy", "p.parquet"):
        with pytest.raises(BadSample), PredictionFile(tmp_path / name) as file:
            file.write({"row": np.arange(3), "prediction": np.zeros(3)})
            raise BadSample
    assert not list(tmp_path.glob("p.*"))
    with pytest.raises(ValueError, match=r"must end in one of .csv, .npy, .parquet; got .*p.txt"):
        PredictionFile(tmp_path / "p.txt")
    with (
        pytest.raises(ValueError, match=r"but these predictions are symbols"),
        PredictionFile(tmp_path / "p.npy") as file,
    ):
        file.write({"prediction": np.array(["a"])})
    (tmp_path / "p.csv").touch()
    with pytest.raises(FileExistsError, match="p.csv exists"):
        PredictionFile(tmp_path / "p.csv")


@pytest.mark.parametrize(
    "task",
    [TASK, Characters(tuple(b"\nab")), Classify(("a",), "k", (2.0, 7.0), (0.0,), (3.0,), "w")],
)
def test_a_task_is_restored_from_its_json(task):
    assert run_task.from_json(json.loads(json.dumps(run_task.to_json(task))), "config.json") == task
    with pytest.raises(
        ValueError, match=r"config.json: task must have the fields .*; missing or unknown: odd"
    ):
        run_task.from_json({**run_task.to_json(task), "odd": 1}, "config.json")
    with pytest.raises(
        ValueError, match="task.kind must be one of forecast, classify, text; got None"
    ):
        run_task.from_json({}, "config.json")


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match="cell must be one of lstm, .*; got 'lstn'"):
        make_model(TASK, "lstn", 4)
    with pytest.raises(
        ValueError, match="hidden and layers must be at least 1; got hidden=4, layers=0"
    ):
        make_model(TASK, "lstm", 4, 0)
    assert make_model(Characters(tuple(b"ab")), "gru", 4, 3).cell.input_dim == 4
